//! HPACK (RFC 7541): header blocks to fields and back. Pure: no I/O, no clock.
//!
//! A connection has a [`Decoder`] for what comes and an [`Encoder`] for what goes. Both keep a dynamic [`table`] in step
//! with the peer's; [`fixed`] is the table that the RFC gives, [`huffman`] its code for strings, [`integer`] its numbers.
//!
//! It is on the path of every request, so nothing here allocates once the tables have grown, fields are borrowed from the
//! block or the table, and names of the static table are told by number. What a peer can make it hold or do is bounded:
//! the tables by [`TABLE_SIZE`], a list of fields by the limit that its reader gives, the work by the block's length.

mod decoder;
mod encoder;
mod fixed;
mod huffman;
mod integer;
mod table;

pub(crate) use self::{
    decoder::Decoder,
    encoder::{Encoder, Indexing},
    fixed::StaticName,
};

/// The size of a dynamic table before anybody changes it (RFC 9113, section 6.5.2).
pub(crate) const TABLE_SIZE: usize = 4096;

/// What an entry counts besides its bytes: in a table (RFC 7541, section 4.1) and in a list of fields (RFC 9113, section
/// 6.5.2).
pub(crate) const OVERHEAD: usize = 32;

/// Why a header block was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// It has more than its reader wants. The tables are in step: only the message is lost.
    #[error("the header list is larger than its limit")]
    TooLarge,
    /// It cannot be decoded, nor can any later one: the connection ends with `COMPRESSION_ERROR`.
    #[error("cannot decode a header block: {0}")]
    Compression(&'static str),
}

/// A field as it was decoded. Nobody has looked at its characters yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// The name's number, if and only if the static table has it.
    pub(crate) known: Option<StaticName>,
    /// Its sender wants it in no table, neither here nor further on (RFC 7541, section 7.1.3).
    pub(crate) never_indexed: bool,
}

#[cfg(test)]
mod tests;
