//! HTTP/2.
use bytes::BytesMut;

use super::{connection::Connection, tunnel};
use crate::cluster::model::Destination;

/// Connections to endpoints.
#[derive(Default)]
pub(crate) struct Pool;

/// Carries a caller's HTTP/2 connection.
pub(crate) async fn serve(connection: Connection, destination: Destination, early: BytesMut) {
    tunnel::serve(connection, destination, early).await;
}
