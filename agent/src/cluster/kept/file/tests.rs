//! What is believed, and what is passed over.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use flate2::Compression;

use super::*;
use crate::cluster::object::Namespace;

const HOUR: Duration = Duration::from_secs(3600);

fn namespace(name: &str) -> Object {
    Object::Namespace(Namespace {
        name: name.into(),
        capture: Some(true),
        access_log: None,
        reclaim: None,
        endpoints: None,
        propagation: None,
    })
}

fn policy(generation: i64, timeout: &str) -> Object {
    let line = format!(
        "TrafficPolicy {{\"metadata\":{{\"namespace\":\"shop\",\"name\":\"p\",\"uid\":\"u\",\"generation\":{generation}}},\
         \"spec\":{{\"targetRefs\":[{{\"kind\":\"Service\",\"name\":\"orders\"}}],\"timeout\":{timeout}}}}}"
    );
    render::read(line.as_bytes()).unwrap().object
}

struct Rig {
    directory: tempfile::TempDir,
    file: StateFile,
    now: SystemTime,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/state.gz");
        // Whole seconds: not every file system keeps more.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(unix(SystemTime::now()));
        Self { directory, file: StateFile { path, node: Some("n1".into()) }, now }
    }

    fn written() -> Self {
        let rig = Self::new();
        rig.file.write(&[namespace("shop"), namespace("bank")], Some("west"), rig.now).unwrap();
        rig
    }

    fn read(&self) -> Result<Option<Restored>, Unusable> {
        self.file.read(self.now)
    }

    /// Why it is passed over.
    fn refused(&self) -> String {
        self.read().unwrap_err().to_string()
    }

    /// Puts this text there.
    fn put(&self, text: &str) {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        fs::write(&self.file.path, gzip.finish().unwrap()).unwrap();
    }
}

#[test]
fn what_was_kept_is_found_with_its_age() {
    let rig = Rig::written();
    let found = rig.file.read(rig.now + HOUR).unwrap().unwrap();
    assert_eq!((found.age, found.zone.as_deref(), found.objects), (HOUR, Some("west"), 2));
    assert_eq!(found.batch.len(), Kind::ALL.len(), "all kinds are told of");
    assert!(matches!(&found.batch[0], Change::Restarted(Kind::Namespace, all) if all.len() == 2));
    // That it still holds is noted without writing it.
    let before = fs::read(&rig.file.path).unwrap();
    rig.file.confirm(rig.now + HOUR).unwrap();
    assert_eq!(rig.file.read(rig.now + HOUR * 2).unwrap().unwrap().age, HOUR);
    assert_eq!(fs::read(&rig.file.path).unwrap(), before);
    // A clock that went back makes nothing negative.
    assert_eq!(rig.file.read(rig.now - HOUR).unwrap().unwrap().age, Duration::ZERO);
}

#[test]
fn it_is_the_agents_alone_and_leaves_nothing_beside_it() {
    let rig = Rig::written();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = rig.file.path.parent().unwrap();
    assert_eq!((mode(&rig.file.path), mode(directory)), (0o600, 0o700));
    let leftover = directory.join(".state.gz.7.tmp");
    fs::write(&leftover, "half").unwrap();
    rig.file.write(&[], None, rig.now).unwrap();
    assert!(leftover.exists(), "somebody may be at it");
    File::options().write(true).open(&leftover).unwrap().set_modified(rig.now - HOUR).unwrap();
    rig.file.write(&[], None, rig.now).unwrap();
    let names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["state.gz"]);
}

#[test]
fn what_is_not_there_is_nothing_to_speak_of() {
    assert!(Rig::new().read().unwrap().is_none());
}

#[test]
fn every_broken_byte_is_noticed() {
    let rig = Rig::written();
    let good = fs::read(&rig.file.path).unwrap();
    for length in 0..good.len() {
        fs::write(&rig.file.path, &good[..length]).unwrap();
        assert!(rig.read().is_err(), "cut after {length} bytes");
    }
    // Of gzip's own first bytes some say nothing: the time, and what wrote it.
    for at in 10..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&rig.file.path, &bytes).unwrap();
        assert!(rig.read().is_err(), "byte {at} is another");
    }
}

#[test]
fn a_file_of_another_kind_version_node_or_age_is_passed_over() {
    let rig = Rig::written();
    rig.put("sluice-state 2 of tomorrow\n");
    assert_eq!(rig.refused(), "its format is version 2, and this agent reads version 1");
    for text in [
        "",
        "something else\n",
        "sluice-state x {}\n",
        "sluice-state 1 {}\n",
        "sluice-state 1 {\"agent\":\"1\",\"current\":0}",
    ] {
        rig.put(text);
        assert!(rig.refused().starts_with("it is broken: "), "{text:?}: {}", rig.refused());
    }
    rig.put("sluice-state 1 {\"agent\":\"1\",\"current\":0}\nGnu {}\n");
    assert_eq!(rig.refused(), "it is broken: a kind that is not known");
    rig.put(&format!(
        "sluice-state 1 {{\"agent\":\"1\",\"current\":0}}\n{}\n",
        "x".repeat(LINE_AT_MOST as usize)
    ));
    assert_eq!(rig.refused(), "it is broken: a line of it is longer than 16 MiB");
    let other = StateFile { node: Some("n2".into()), ..rig.file.clone() };
    other.write(&[], None, rig.now).unwrap();
    assert_eq!(rig.refused(), "it is of node \"n2\"");
    rig.file.write(&[], None, rig.now - HOUR * 25).unwrap();
    assert_eq!(rig.refused(), "it is 25 hours old, and at most 24 are believed");
}

#[test]
fn a_file_that_others_may_have_written_is_passed_over() {
    let rig = Rig::written();
    fs::set_permissions(&rig.file.path, fs::Permissions::from_mode(0o620)).unwrap();
    assert_eq!(rig.refused(), "it is writable by others");
    let link = StateFile { path: rig.directory.path().join("link"), ..rig.file.clone() };
    symlink(&rig.file.path, &link.path).unwrap();
    assert!(matches!(link.read(rig.now), Err(Unusable::Io(_))));
    let directory = StateFile { path: rig.directory.path().to_owned(), ..rig.file.clone() };
    assert_eq!(directory.read(rig.now).unwrap_err().to_string(), "it is no regular file");
    let huge = File::create(&rig.file.path).unwrap();
    fs::set_permissions(&rig.file.path, fs::Permissions::from_mode(0o600)).unwrap();
    huge.set_len(FILE_AT_MOST + 1).unwrap();
    assert_eq!(rig.refused(), "it is larger than 64 MiB");
}

#[test]
fn what_cannot_be_written_leaves_what_was_there() {
    let rig = Rig::written();
    let before = fs::read(&rig.file.path).unwrap();
    let mut bounded = Bounded { file: File::create(rig.directory.path().join("b")).unwrap(), left: 3 };
    assert_eq!(bounded.write(b"ab").unwrap(), 2);
    assert_eq!(bounded.write(b"cd").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    let nowhere = StateFile { path: rig.file.path.join("below/a/file"), ..rig.file.clone() };
    assert!(nowhere.write(&[], None, rig.now).is_err());
    assert_eq!(fs::read(&rig.file.path).unwrap(), before);
}

#[test]
fn a_good_version_that_an_invalid_one_stands_before_is_kept_too() {
    let rig = Rig::new();
    rig.file.write(&[policy(1, "\"1s\""), policy(2, "7")], None, rig.now).unwrap();
    let found = rig.read().unwrap().unwrap();
    assert_eq!(found.objects, 1);
    let first = found.batch.iter().find_map(|change| match change {
        Change::Restarted(Kind::TrafficPolicy, all) => Some(all[0].object.clone()),
        _ => None,
    });
    assert_eq!(first, Some(policy(1, "\"1s\"")));
    assert!(matches!(found.batch.last(), Some(Change::Applied(later)) if later.object == policy(2, "7")));
}
