//! `/etc/svirt-interpose.conf`: TOML, every key optional.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Deserializer};

use crate::context::Context;
use crate::selinux;

/// Where the configuration is read from.
pub const PATH: &str = "/etc/svirt-interpose.conf";

/// Where upstream's `LIBEXEC_BIN` puts Xen's QEMU.
const UPSTREAM_QEMU: &str = "/usr/lib/xen/bin/qemu-system-i386";

/// Where distributions put it: Debian, upstream, Fedora, XAPI.
pub(crate) const QEMU_PATHS: &[&str] = &[
    "/usr/libexec/xen-qemu-system-i386",
    UPSTREAM_QEMU,
    "/usr/libexec/xen/bin/qemu-system-i386",
    "/usr/lib64/xen/bin/qemu-system-i386",
];

/// What `svirt-interpose-default on` adds to the name of the QEMU whose place it takes, as dpkg-divert(1) does.
const DIVERTED: &str = ".distrib";

/// The QEMU that is executed where the configuration names none: that which had to make room, or else that which did not.
fn default_qemu(exists: impl Fn(&str) -> bool) -> String {
    let paths = QEMU_PATHS.iter().flat_map(|path| [format!("{path}{DIVERTED}"), (*path).to_owned()]);
    paths.into_iter().find(|path| exists(path)).unwrap_or_else(|| UPSTREAM_QEMU.to_owned())
}

/// The configuration; a key that the file does not name has its default.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The QEMU to execute. Default: the first that exists of the places where distributions put Xen's, and of
    /// those where svirt-interpose-default(8) moves it.
    #[serde(default = "installed_qemu", deserialize_with = "absolute")]
    pub qemu: PathBuf,
    /// Where claims are kept; it must outlive a reboot. Default: `/var/lib/svirt-interpose`.
    #[serde(default = "default_state_dir", deserialize_with = "absolute")]
    pub state_dir: PathBuf,
    /// User, role, type and sensitivity of a guest's QEMU. Default: the policy's `virtual_domain_context`.
    #[serde(default, deserialize_with = "context")]
    pub domain_context: Option<Context>,
    /// The same of a writable disk. Default: the policy's `virtual_image_context`.
    #[serde(default, deserialize_with = "context")]
    pub image_context: Option<Context>,
    /// The same of a file that guests only read. Default: the second line of the policy's `virtual_image_context`.
    #[serde(default, deserialize_with = "context")]
    pub content_context: Option<Context>,
    /// The same of a disk that several guests write. Default: none.
    #[serde(default, deserialize_with = "context")]
    pub shared_context: Option<Context>,
    /// The disks that several guests write, as they agree among themselves: a cluster's. Default: none.
    #[serde(default, deserialize_with = "all_absolute")]
    pub shared_disks: Vec<PathBuf>,
    /// Where backing files of qcow2 disks are, to be read by whichever guest's image names them. Default: nowhere.
    #[serde(default, deserialize_with = "all_absolute")]
    pub backing_dirs: Vec<PathBuf>,
    /// Refuse to start a guest where SELinux is disabled. Default: false.
    #[serde(default)]
    pub require: bool,
}

fn installed_qemu() -> PathBuf {
    default_qemu(|path| Path::new(path).exists()).into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/svirt-interpose".into()
}

/// What a launch labels with, without the guest's categories.
#[derive(Debug)]
pub struct Contexts {
    /// A guest's QEMU.
    pub domain: Context,
    /// A writable disk.
    pub image: Context,
    /// A file that guests only read.
    pub content: Context,
    /// A disk that several guests write; that of a writable disk where there are none.
    pub shared: Context,
}

impl Contexts {
    /// Each of them.
    #[must_use]
    pub fn all(&self) -> [&Context; 4] {
        [&self.domain, &self.image, &self.content, &self.shared]
    }
}

impl Config {
    /// The contexts that it names, and for each other one the policy's.
    ///
    /// # Errors
    /// As [`named_contexts`](Self::named_contexts), or when the loaded policy does not know one.
    pub fn contexts(&self) -> Result<Contexts> {
        let contexts = self.named_contexts()?;
        contexts.all().into_iter().try_for_each(selinux::check)?;
        Ok(contexts)
    }

    /// The same, whether the loaded policy knows them or not.
    ///
    /// # Errors
    /// When the policy names none, or disks are shared that would not be told from others.
    pub fn named_contexts(&self) -> Result<Contexts> {
        let named = |named: &Option<Context>, default: fn() -> Result<Context>| named.clone().map_or_else(default, Ok);
        let domain = named(&self.domain_context, selinux::virtual_domain_context)?;
        let image = named(&self.image_context, selinux::virtual_image_context)?;
        let content = named(&self.content_context, selinux::virtual_content_context)?;
        let shared = self.shared_context.as_ref().unwrap_or(&image).clone();
        ensure!(
            self.shared_disks.is_empty() || ![image.type_(), content.type_()].contains(&shared.type_()),
            "{PATH} names shared_disks, but no shared_context of a type of their own"
        );
        Ok(Contexts { domain, image, content, shared })
    }

    /// Reads [`PATH`]; a file that does not exist is an empty one.
    ///
    /// # Errors
    /// When it cannot be read, is not root's alone to write, or has an unknown key or a bad value: the
    /// error names its line.
    pub fn load() -> Result<Self> {
        let mut text = String::new();
        match File::open(PATH) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {PATH}")),
            Ok(mut file) => {
                let metadata = file.metadata().with_context(|| format!("cannot read {PATH}"))?;
                ensure!(
                    metadata.uid() == 0 && metadata.mode() & 0o022 == 0,
                    "refusing {PATH}: somebody else than root may write it (chown root and chmod 0644 it)"
                );
                file.read_to_string(&mut text).with_context(|| format!("cannot read {PATH}"))?;
            }
        }
        text.parse()
    }
}

impl FromStr for Config {
    type Err = anyhow::Error;

    /// Reads the text of a configuration; an error names the line.
    fn from_str(text: &str) -> Result<Self> {
        toml::from_str(text).or_else(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            bail!("{PATH}:{line}: {}", error.message().replace('\n', " "))
        })
    }
}

fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    check_absolute(PathBuf::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn all_absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    let paths = Vec::<PathBuf>::deserialize(deserializer)?;
    paths.into_iter().map(check_absolute).collect::<Result<_>>().map_err(serde::de::Error::custom)
}

fn check_absolute(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.is_absolute(), "{} is no absolute path", path.display());
    Ok(path)
}

fn context<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Context>, D::Error> {
    let context = String::deserialize(deserializer)?;
    context.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", text.parse::<Config>().unwrap_err())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = "".parse::<Config>().unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/svirt-interpose"));
        assert!(config.qemu.is_absolute() && config.domain_context.is_none() && !config.require);
    }

    #[test]
    fn a_qemu_that_made_room_comes_before_what_is_in_its_place() {
        let among = |there: &[&str]| default_qemu(|path| there.contains(&path));
        let debian = "/usr/libexec/xen-qemu-system-i386";
        assert_eq!(among(&[debian]), debian);
        assert_eq!(among(&[debian, "/usr/libexec/xen-qemu-system-i386.distrib"]), format!("{debian}.distrib"));
        assert_eq!(among(&["/usr/lib/xen/bin/qemu-system-i386.distrib", debian]), debian);
        assert_eq!(among(&[]), UPSTREAM_QEMU);
    }

    #[test]
    fn reads_every_key() {
        let text = "qemu = '/opt/qemu'\nstate_dir = '/srv/state'\ndomain_context = 'system_u:system_r:svirt_xen_t:s0'\n\
             image_context = 'system_u:object_r:svirt_xen_image_t:s0'\n\
             shared_context = 'system_u:object_r:svirt_xen_shared_image_t:s0'\nshared_disks = ['/dev/vg/cluster']\n\
             backing_dirs = ['/srv/templates', '/srv/more']\nrequire = true\n";
        let config: Config = text.parse().unwrap();
        assert_eq!(config.qemu, Path::new("/opt/qemu"));
        assert_eq!(config.state_dir, Path::new("/srv/state"));
        assert_eq!(config.domain_context.unwrap().type_(), "svirt_xen_t");
        assert_eq!(config.image_context.unwrap().type_(), "svirt_xen_image_t");
        assert_eq!(config.shared_context.unwrap().type_(), "svirt_xen_shared_image_t");
        assert_eq!(config.shared_disks, [Path::new("/dev/vg/cluster")]);
        assert_eq!(config.backing_dirs, ["/srv/templates", "/srv/more"].map(Path::new));
        assert!(config.require);
    }

    #[test]
    fn names_the_line_of_every_error() {
        assert_eq!(
            error("# a comment\nrequired = true\n"),
            "/etc/svirt-interpose.conf:2: unknown field `required`, expected one of `qemu`, `state_dir`, `domain_context`, `image_context`, `content_context`, `shared_context`, `shared_disks`, `backing_dirs`, `require`"
        );
        assert!(error("qemu = 'bin/qemu'\n").starts_with("/etc/svirt-interpose.conf:1: bin/qemu is no absolute path"));
        assert!(
            error("require = true\nbacking_dirs = ['/a', 'b']").starts_with("/etc/svirt-interpose.conf:2: b is no abs")
        );
        assert!(
            error("shared_disks = ['vg/cluster']").starts_with("/etc/svirt-interpose.conf:1: vg/cluster is no abs")
        );
        assert!(error("\n\nrequire = 'yes'\n").starts_with("/etc/svirt-interpose.conf:3: "));
        assert!(error("domain_context = 'system_u:system_r:svirt_t'").contains("has no level"));
        assert!(error("qemu = '/a'\nqemu = '/b'\n").starts_with("/etc/svirt-interpose.conf:2: "));
        assert!(error("qemu = '/a\n").starts_with("/etc/svirt-interpose.conf:1: "));
    }
}
