//! The pages over a Unix socket, for root on this node: reads, and what changes the agent.
//!
//! Only root gets in: the socket has mode 0600, and who connects is asked who it is. Where two agents share the path (two
//! DaemonSet pods do not: each has a directory of its own) the newer one takes it over in one step, and the older one
//! neither notices nor takes it away when it ends.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{MAX_CONNECTIONS, Pages, Rights, accept_failed, serve_connection};

/// The admin socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("--admin-socket {}: cannot listen there: {source}; choose another path, or `none`", path.display())]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// The admin server for root, listening but not yet serving.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    pages: Arc<Pages>,
    place: Place,
}

/// The socket's file, which goes with us unless another agent has put its own there.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    inode: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // If it stays, the next agent replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AdminSocket {
    /// Listens. Must be called inside a Tokio runtime.
    pub fn bind(path: &Path, pages: Arc<Pages>) -> Result<Self, SocketError> {
        match listen(path) {
            Ok((listener, place)) => Ok(Self { listener, pages, place }),
            Err(source) => Err(SocketError { path: path.to_owned(), source }),
        }
    }

    /// Serves until it is dropped.
    pub async fn serve(self) -> Infallible {
        let Self { listener, pages, place: _place } = self;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) if may_enter(&stream) => {
                    let pages = Arc::clone(&pages);
                    tokio::spawn(async move {
                        serve_connection(stream, pages, Rights::Change).await;
                        drop(place);
                    });
                }
                Ok(_) => {}
                Err(error) => accept_failed(error).await,
            }
        }
    }
}

/// Root, or whoever the agent runs as.
fn may_enter(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || own_user().is_ok_and(|own| peer.uid() == own) => true,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                "admin: rejected a connection to the socket: its user is not root"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "admin: rejected a connection to the socket: its user cannot be determined");
            false
        }
    }
}

/// `/proc/self` belongs to the effective user.
fn own_user() -> io::Result<u32> {
    fs::metadata("/proc/self").map(|metadata| metadata.uid())
}

fn listen(path: &Path) -> io::Result<(UnixListener, Place)> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(file) if !std::os::unix::fs::FileTypeExt::is_socket(&file.file_type()) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        _ => {}
    }
    // Made under another name first: nobody finds it before it is root's alone, and it replaces another agent's in one
    // step, so that somebody always answers.
    let mut name = OsString::from(path);
    name.push(format!(".{}", process::id()));
    let temporary = PathBuf::from(name);
    let _ = fs::remove_file(&temporary);
    let outcome = listen_at(&temporary).and_then(|(listener, inode)| {
        fs::rename(&temporary, path)?;
        Ok((listener, Place { path: path.to_owned(), inode }))
    });
    if outcome.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    outcome
}

/// Until it listens nobody can connect, so the mode comes early enough.
fn listen_at(path: &Path) -> io::Result<(UnixListener, u64)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let inode = fs::symlink_metadata(path)?.ino();
    socket.listen(128)?;
    Ok((UnixListener::from_std(socket.into())?, inode))
}
