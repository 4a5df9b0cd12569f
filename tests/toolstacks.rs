//! Each toolstack's own launch, as captured from it or rebuilt from its sources, through the real wrapper: which does what
//! `svirtctl plan` said of it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod fixture;
    pub(crate) mod host;
    pub(crate) mod loop_device;
    pub(crate) mod plan;
    pub(crate) mod xenstored;
}

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::fixture::{Fixture, reported};
use common::host::{CONTENT, Host, Started, UNUSED, label};
use common::loop_device::Loop;
use common::plan::Plan;
use xenstore_rs::Xs as _;

/// Where the captured guests of xl have their images.
const XL: &str = "/var/lib/xen/images";

/// A fixture, and what stands on this host for its disks.
struct Launch {
    host: Host,
    fixture: Fixture,
    /// Captured paths, and those of this machine.
    paths: Vec<(String, PathBuf)>,
}

impl Launch {
    /// With an image for each of the captured ones.
    fn new(name: &str, images: &[&str]) -> Self {
        let mut launch = Self { host: Host::new(), fixture: Fixture::load(name), paths: Vec::new() };
        for captured in images {
            let image = launch.host.image(captured.rsplit('/').next().unwrap());
            launch.paths.push(((*captured).into(), image));
        }
        launch
    }

    /// With a loop device over that image in the place of a captured device.
    fn device(&mut self, captured: &str, image: &str) -> Loop {
        let path = self.named(image);
        let device = Loop::over(&if path.exists() { path } else { self.host.image(image) });
        self.paths.push((captured.into(), device.0.clone()));
        device
    }

    fn install(&mut self) {
        self.fixture.replace(&self.paths);
        self.fixture.install(&self.host);
    }

    /// Starts it, and looks at what QEMU got: everything as the toolstack gave it, and its own context.
    fn confined(&mut self, domid: u16) -> Started {
        self.confined_by(domid, &[])
    }

    /// The same by way of programs that change what a process runs in.
    fn confined_by(&mut self, domid: u16, programs: &[&str]) -> Started {
        self.install();
        let mut command = self.fixture.command(&self.host);
        if !programs.is_empty() {
            command = around(programs, &command, Some(&self.fixture.argv[0]));
            command.stdin(Stdio::null());
        }
        let devices: Vec<PathBuf> =
            self.paths.iter().map(|(_, path)| path.clone()).filter(|path| !path.is_file()).collect();
        let plan = Plan::of(&self.host, &self.fixture.argv[1..], &devices);
        let qemu = plan.is_what_was_done(&self.host, self.host.run(command).outcome()).unwrap();
        self.check(domid, &qemu);
        qemu
    }

    fn check(&self, domid: u16, qemu: &Started) {
        let argv: Vec<OsString> = self.fixture.argv.iter().map(Into::into).collect();
        assert_eq!(reported(&qemu.report(), "arg"), argv);
        let env = reported(&qemu.report(), "env");
        for (name, value) in self.fixture.env.iter().filter(|(name, _)| name != "LD_PRELOAD") {
            assert!(env.contains(&format!("{name}={value}").into()), "{name}");
        }
        let pair = self.host.key(domid).unwrap();
        assert_eq!(qemu.exec_context(&self.host).unwrap(), format!("system_u:system_r:svirt_xen_t:s0:{pair}"));
    }

    fn own(&self, domid: u16, images: &[&str]) {
        for image in images {
            self.owns(domid, &self.named(image));
        }
    }

    fn owns(&self, domid: u16, path: &Path) {
        let own = format!("system_u:object_r:svirt_xen_image_t:s0:{}", self.host.key(domid).unwrap());
        assert_eq!(label(path), own, "{}", path.display());
    }

    fn named(&self, name: &str) -> PathBuf {
        self.host.path("images").join(name)
    }
}

/// The command by way of programs that execute the arguments after their own; with that as its `argv[0]`.
fn around(programs: &[&str], command: &Command, argv0: Option<&str>) -> Command {
    let mut outer = Command::new(programs[0]);
    outer.args(&programs[1..]);
    if let Some(argv0) = argv0 {
        outer.args(["bash", "-c", "exec -a \"$0\" \"$@\"", argv0]);
    }
    outer.arg(command.get_program()).args(command.get_args());
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer
}

// xl

#[test]
fn xl_an_hvm_guest_of_every_kind_of_disk() {
    let images = ["h2.raw", "h2b.qcow2", "h2f.raw", "cd.iso", "ro.raw"].map(|name| format!("{XL}/{name}"));
    let mut launch = Launch::new("xl-hvm", &images.each_ref().map(String::as_str));
    let device = launch.device("/dev/loop7", "behind.raw");
    let _scripts = launch.device("/dev/loop0", "ro.raw");
    let _qemu = launch.confined(2);
    launch.own(2, &["h2.raw", "h2b.qcow2", "h2f.raw", "behind.raw"]);
    launch.owns(2, &device.0);
    for readonly in ["cd.iso", "ro.raw"] {
        assert_eq!(label(&launch.named(readonly)), CONTENT, "{readonly}");
    }
}

#[test]
fn xl_an_hvm_guest_whose_files_have_the_block_scripts_loop_devices() {
    let images = ["h1.raw", "h1b.raw", "cd.iso"].map(|name| format!("{XL}/{name}"));
    let mut launch = Launch::new("xl-hvm-phy", &images.each_ref().map(String::as_str));
    let loops = [launch.device("/dev/loop0", "h1.raw"), launch.device("/dev/loop1", "h1b.raw")];
    let _qemu = launch.confined(1);
    launch.own(1, &["h1.raw", "h1b.raw"]);
    for device in &loops {
        assert_eq!(label(&device.0), "system_u:object_r:fixed_disk_device_t:s0", "the kernel alone uses it");
    }
}

#[test]
fn xl_guests_whose_argv_names_no_disk() {
    for (name, domid, disks) in [("xl-pv", 1, ["p1.raw", "p1b.raw"]), ("xl-pvh", 2, ["v1.raw", "v1b.raw"])] {
        let images = disks.map(|name| format!("{XL}/{name}"));
        let mut launch = Launch::new(name, &images.each_ref().map(String::as_str));
        let _scripts = launch.device("/dev/loop0", disks[1]);
        let _qemu = launch.confined(domid);
        launch.own(domid, &disks);
    }
}

#[test]
fn xl_a_guest_whose_qemu_is_to_give_up_root() {
    let mut launch = Launch::new("xl-dm-restrict", &["/var/lib/xen/images/r.raw"]);
    let _script = launch.device("/dev/loop0", "r.raw");
    // as libxl__local_dm_preexec_restrict of libxl_linux.c
    let limits = ["--fsize=262144", "--core=0", "--msgqueue=0", "--locks=0", "--memlock=0"];
    let _qemu = launch.confined_by(1, &[&["unshare", "--mount", "--ipc", "prlimit"][..], &limits].concat());
    launch.own(1, &["r.raw"]);
}

#[test]
fn xl_the_qemu_in_dom0_of_a_stub_domain_is_confined_as_the_stub_domains() {
    let mut launch = Launch::new("stubdom", &["/var/lib/xen/images/h7.qcow2", "/var/lib/xen/images/cd.iso"]);
    let _qemu = launch.confined(8);
    launch.own(8, &["h7.qcow2"]);
    assert_eq!(label(&launch.named("cd.iso")), CONTENT);
    assert_eq!(launch.host.key(7), None, "the guest itself has no QEMU here");
}

// XAPI

#[test]
fn xapi_a_guest_beneath_qemu_wrapper() {
    let disk = "/dev/sm/backend/f2b1e9d0-7c53-4d2a-8f1e-1a2b3c4d5e6f/0c1d2e3f-4a5b-6c7d-8e9f-a0b1c2d3e4f5";
    let mut launch = Launch::new("xapi", &[]);
    let device = launch.device(disk, "behind.raw");
    // as prepare_exec of qemu-wrapper
    let qemu = launch.confined_by(7, &["unshare", "--mount", "--ipc", "--net", "prlimit", "--fsize=1048576"]);
    launch.own(7, &["behind.raw"]);
    launch.owns(7, &device.0);
    let preload = reported(&qemu.report(), "env").into_iter().filter_map(|variable| variable.into_string().ok());
    assert!(preload.into_iter().any(|variable| variable.ends_with(".so /usr/lib64/libjemalloc.so.2")));
}

#[test]
fn xapi_a_disk_that_a_daemon_serves_on_a_socket_has_no_object() {
    let mut launch = Launch::new("xapi-nbd", &[]);
    let socket = launch.host.path("nbd.sock");
    let _daemon = UnixListener::bind(&socket).unwrap();
    launch.paths.push(("/run/qemu-dp/nbd.7.sock".into(), socket));
    let _qemu = launch.confined(7);
}

#[test]
fn xapi_its_question_for_the_version_is_answered_by_qemu() {
    let host = Host::new();
    let qemu = host.start(&["-version"]).outcome().unwrap();
    assert_eq!(qemu.exec_context(&host), None);
    assert!(!host.path("state").exists());
}

/// Positions in a chain where the wrapper cannot work, and what it says there.
#[test]
fn refuses_where_the_toolstack_has_given_up_what_a_launch_needs() {
    let mut launch = Launch::new("xl-pv", &["/var/lib/xen/images/p1.raw", "/var/lib/xen/images/p1b.raw"]);
    let _scripts = launch.device("/dev/loop0", "p1b.raw");
    launch.install();
    let (host, disk) = (&launch.host, launch.named("p1.raw"));
    let wrapper = launch.fixture.command(host);
    let before = host.everything();
    let refused = |programs: &[&str]| {
        let command = around(programs, &wrapper, None);
        let refusal = host.run(command).outcome().err().expect("QEMU was started");
        assert_eq!(refusal.status, 125, "{}", refusal.said);
        assert_eq!(host.everything(), before);
        refusal.said
    };

    // root is given up; the one capability is for the way to this test's own programs, which access(2) does not count
    host.configure("qemu = '/bin/true'");
    fs::set_permissions(host.xenstored.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    let capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"];
    let said = refused(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", capability[0], capability[1]]);
    assert!(said.contains("cannot connect to xenstored at") && said.contains("Permission denied"), "{said}");

    // the root is another, where nothing is mounted
    let said = refused(&["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"]);
    assert!(said.contains("cannot read /proc/self/exe: mount /proc"), "{said}");
    assert_eq!(label(&disk), UNUSED);
}

// OpenXT

fn openxt() -> (Launch, [Loop; 2]) {
    let mut launch = Launch::new("openxt", &["/storage/disks/swap.raw", "/storage/isos/xc-tools.iso"]);
    let devices = [launch.device("/dev/xen/blktap-2/tapdev0", "behind.vhd"), launch.device("/dev/loop3", "swap.raw")];
    (launch, devices)
}

#[test]
fn openxt_a_tapdev_and_a_loop_device_that_qemu_itself_opens() {
    let (mut launch, devices) = openxt();
    let _qemu = launch.confined(7);
    launch.own(7, &["behind.vhd", "swap.raw"]);
    for device in &devices {
        launch.owns(7, &device.0);
    }
    assert_eq!(label(&launch.named("xc-tools.iso")), CONTENT);
}

#[test]
fn openxt_keys_of_its_own_interposer_count_as_the_category_they_mean() {
    let (mut launch, _devices) = openxt();
    launch.host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c0.c2");
    launch.host.store().write("/local/domain/3/selinux-mcs", "1").unwrap();
    let _qemu = launch.confined(7);
    assert_eq!(launch.host.key(7).unwrap(), "c0,c2");
}
