//! What `build.rs` makes of where it runs and of `SLUICE_BPF_OBJECT`: an agent without programs must never be built by
//! accident for anything but tests. The script is compiled and run as cargo does it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use tempfile::TempDir;

const TRIPLE: &str = "x86_64-unknown-linux-musl";

static SCRIPT: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("build-script");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
    let compiled = Command::new(rustc).args(["--edition=2024", "-o"]).arg(&program).arg(source).output();
    let compiled = compiled.expect("rustc is there: it compiled this test");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    (directory, program)
});

/// A target directory as cargo makes it.
struct Build {
    target: TempDir,
    out: PathBuf,
    profile: &'static str,
}

/// What the script said to cargo, and what it wrote for the agent to include.
#[derive(Debug)]
struct Ran {
    said: String,
    code: Option<String>,
}

impl Build {
    /// `<target>/debug`, or `<target>/<triple>/debug` with cargo's mark there as well.
    fn new(profile: &'static str, triple: bool) -> Self {
        let target = tempfile::tempdir().unwrap();
        let mut marked = vec![target.path().to_owned()];
        marked.extend(triple.then(|| target.path().join(TRIPLE)));
        let out = marked.last().unwrap().join(profile).join("build/sluice-0123456789abcdef/out");
        fs::create_dir_all(&out).unwrap();
        for directory in marked {
            fs::write(directory.join("CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n")
                .unwrap();
        }
        Self { target, out, profile }
    }

    /// What `cargo xtask build` leaves.
    fn with_object(self, content: &str) -> Self {
        let directory = self.target.path().join("bpf");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("sluice.bpf.o"), content).unwrap();
        self
    }

    fn run(&self, named: Option<&str>) -> Ran {
        let mut script = Command::new(&SCRIPT.1);
        script.env("OUT_DIR", &self.out).env("TARGET", TRIPLE).env("PROFILE", self.profile);
        script.env_remove("SLUICE_BPF_OBJECT");
        if let Some(named) = named {
            script.env("SLUICE_BPF_OBJECT", named);
        }
        let output = script.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        Ran { said, code: fs::read_to_string(self.out.join("object.rs")).ok() }
    }
}

impl Ran {
    fn error(&self) -> &str {
        assert_eq!(self.code, None, "nothing may be built on");
        let errors: Vec<&str> =
            self.said.lines().filter_map(|line| line.strip_prefix("cargo::error=")).collect();
        assert!(errors.len() == 1, "{self:?}");
        errors[0]
    }

    /// The embedded object.
    fn embedded(&self, build: &Build) -> Option<String> {
        assert!(!self.said.contains("cargo::error"), "{self:?}");
        let code = self.code.as_deref().unwrap();
        if code == "None" {
            return None;
        }
        let copy = build.out.join("sluice.bpf.o");
        let path = copy.to_str().unwrap();
        assert_eq!(code, format!("Some(aya::include_bytes_aligned!({path:?}))"));
        Some(fs::read_to_string(copy).unwrap())
    }
}

#[test]
fn what_is_named_is_embedded() {
    for (profile, triple) in [("debug", false), ("release", false), ("release", true)] {
        let build = Build::new(profile, triple).with_object("old");
        let object = build.target.path().join("named.o");
        fs::write(&object, "new").unwrap();
        let ran = build.run(object.to_str());
        assert_eq!(ran.embedded(&build).as_deref(), Some("new"), "{profile}, triple: {triple}");
        assert!(ran.said.contains(&format!("cargo::rerun-if-changed={}\n", object.display())), "{ran:?}");
        assert!(ran.said.contains("cargo::rerun-if-env-changed=SLUICE_BPF_OBJECT\n"), "{ran:?}");
    }
}

#[test]
fn a_named_object_that_is_not_there_fails_the_build() {
    for profile in ["debug", "release"] {
        let build = Build::new(profile, false).with_object("old");
        let ran = build.run(Some("/no/such/object"));
        assert_eq!(ran.error(), "SLUICE_BPF_OBJECT names /no/such/object, which is no file");
    }
}

#[test]
fn a_release_without_programs_must_be_asked_for() {
    for triple in [false, true] {
        // What lies there may be old: it is not taken without being named.
        let build = Build::new("release", triple).with_object("old");
        for nothing in [None, Some("")] {
            let ran = build.run(nothing);
            let error = ran.error();
            for word in ["cargo xtask build --release", "cargo xtask image", "SLUICE_BPF_OBJECT", "`none`"] {
                assert!(error.contains(word), "{error}");
            }
        }
        assert_eq!(build.run(Some("none")).embedded(&build), None);
    }
}

#[test]
fn a_debug_build_takes_what_xtask_has_left_or_does_without() {
    for triple in [false, true] {
        let bare = Build::new("debug", triple);
        let ran = bare.run(None);
        assert_eq!(ran.embedded(&bare), None, "triple: {triple}");
        // It is built anew once there are programs.
        let watched = format!("cargo::rerun-if-changed={}\n", bare.target.path().join("bpf").display());
        assert!(ran.said.contains(&watched), "{ran:?}");
        assert!(bare.target.path().join("bpf").is_dir());
        let build = Build::new("debug", triple).with_object("old");
        assert_eq!(build.run(None).embedded(&build).as_deref(), Some("old"), "triple: {triple}");
        assert_eq!(build.run(Some("none")).embedded(&build), None);
    }
}
