//! Who is in the way: a BPF program that was attached to a group so that nobody else may attach there or below, or one
//! that runs before ours.
//!
//! The kernel only says EPERM then. aya has no query for these kinds of programs.
//! <https://elixir.bootlin.com/linux/v6.12/source/kernel/bpf/cgroup.c#L411>

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

use aya::programs::loaded_programs;
use sluice_ebpf::program;

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// As many as the kernel allows for a group.
const ROOM: usize = 64;

/// `BPF_CGROUP_*` in `enum bpf_attach_type`.
fn attach_type(program: &str) -> Option<u32> {
    Some(match program {
        program::ESTABLISHED => 3,
        program::CONNECT4 => 10,
        program::CONNECT6 => 11,
        program::GETPEERNAME4 => 29,
        program::GETPEERNAME6 => 30,
        program::GETSOCKNAME4 => 31,
        program::GETSOCKNAME6 => 32,
        _ => return None,
    })
}

/// The head of `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
}

/// The nearest group, from this one upwards, with programs of the same kind that tolerate no others. Said in words.
pub(crate) fn find(program: &str, group: &Path) -> Option<String> {
    let attach_type = attach_type(program)?;
    group.ancestors().find_map(|group| {
        let (flags, ids) = query(group, attach_type).ok()?;
        (!ids.is_empty() && flags & BPF_F_ALLOW_MULTI == 0).then(|| describe(group, &ids))
    })
}

/// The programs of the same kind on a group, in the order in which they run.
pub(crate) fn attached(program: &str, group: &Path) -> io::Result<Vec<u32>> {
    let attach_type = attach_type(program).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(query(group, attach_type)?.1)
}

/// Those that are not Sluice's, in words; `None`: all are. Another agent's are there while it hands over.
pub(crate) fn foreign(program: &str, group: &Path, ids: &[u32]) -> Option<String> {
    let foreign: Vec<_> = ids.iter().copied().filter(|id| name(*id) != program).collect();
    (!foreign.is_empty()).then(|| describe(group, &foreign))
}

fn describe(group: &Path, ids: &[u32]) -> String {
    let named = |id: &u32| format!("{:?} (id {id})", name(*id));
    format!("{} on {}", ids.iter().map(named).collect::<Vec<_>>().join(", "), group.display())
}

/// Empty if it has none, or is gone.
fn name(id: u32) -> String {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id);
    info.and_then(|info| info.name_as_str().map(str::to_owned)).unwrap_or_default()
}

fn query(group: &Path, attach_type: u32) -> io::Result<(u32, Vec<u32>)> {
    let group = File::open(group)?;
    let mut ids = [0_u32; ROOM];
    let mut query = Query {
        target_fd: group.as_raw_fd().cast_unsigned(),
        attach_type,
        flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ROOM as u32,
        reserved: 0,
    };
    // SAFETY: the kernel writes into `query`, whose size it is told, and at most `prog_cnt` ids into `ids`; both
    // outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((query.attach_flags, ids[..ROOM.min(query.prog_cnt as usize)].to_vec()))
}
