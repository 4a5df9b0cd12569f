//! The kernel's SELinux, and the only file that sees the selinux crate. Raw contexts throughout: mcstransd
//! has no word in what is set or compared.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use selinux::{KernelSupport, SELinuxMode, SecurityClass, SecurityContext};

use crate::context::Context;

/// Whether SELinux decides anything on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The kernel has it switched off.
    Disabled,
    /// It logs what it would refuse.
    Permissive,
    /// It refuses.
    Enforcing,
}

/// Tells the mode.
///
/// libselinux calls SELinux disabled wherever `/etc/selinux/config` or the mount of selinuxfs is missing, an
/// enforcing kernel included (`is_selinux_enabled` in libselinux/src/enabled.c). It is believed only when the
/// kernel's list of filesystems has no selinuxfs.
///
/// # Errors
/// When the two disagree, when the list cannot be read, or when the policy has no MCS.
pub fn mode() -> Result<Mode> {
    const LIST: &str = "/proc/filesystems";
    match selinux::kernel_support() {
        KernelSupport::SELinuxMLS => {}
        KernelSupport::SELinux => bail!("the loaded SELinux policy has no categories: install one with MCS"),
        _ => {
            let list = fs::read_to_string(LIST).with_context(|| format!("cannot read {LIST}"))?;
            let built_in = list.lines().any(|line| line.split_whitespace().any(|word| word == "selinuxfs"));
            ensure!(
                !built_in,
                "the kernel runs SELinux but libselinux finds it disabled: mount selinuxfs at /sys/fs/selinux and \
                 restore /etc/selinux/config, or boot with selinux=0"
            );
            return Ok(Mode::Disabled);
        }
    }
    match selinux::current_mode() {
        SELinuxMode::Enforcing => Ok(Mode::Enforcing),
        SELinuxMode::Permissive => Ok(Mode::Permissive),
        _ => bail!("cannot read whether SELinux is enforcing"),
    }
}

/// This process's own context.
///
/// # Errors
/// When the kernel does not tell it, or tells something that is none.
pub fn own_context() -> Result<Context> {
    let own = SecurityContext::current(true).map_err(errno).context("cannot read our own context")?;
    Ok(text(&own)?.parse()?)
}

/// The context of a running process.
///
/// # Errors
/// When there is no such process, or its context cannot be read.
pub fn context_of(pid: u32) -> Result<Context> {
    let number = i32::try_from(pid).with_context(|| format!("{pid} is no pid"))?;
    let context = SecurityContext::of_process(number, true).map_err(errno);
    Ok(text(&context.with_context(|| format!("cannot read the context of process {pid}"))?)?.parse()?)
}

/// User, role, type and sensitivity of a guest's QEMU as the policy names them: the first line of
/// `contexts/virtual_domain_context`, selabel(5) and libvirt's `virSecuritySELinuxInitialize`.
///
/// # Errors
/// When the file is missing or its first line is no context.
pub fn virtual_domain_context() -> Result<Context> {
    line(selinux::path::virtual_domain_context().map_err(errno)?, 0, "domain_context")
}

/// The same of a writable disk: the first line of `contexts/virtual_image_context`.
///
/// # Errors
/// When the file is missing or its first line is no context.
pub fn virtual_image_context() -> Result<Context> {
    line(selinux::path::virtual_image_context().map_err(errno)?, 0, "image_context")
}

/// The same of a file that guests only read: the second line of `contexts/virtual_image_context`.
///
/// # Errors
/// When the file is missing or its second line is no context.
pub fn virtual_content_context() -> Result<Context> {
    line(selinux::path::virtual_image_context().map_err(errno)?, 1, "content_context")
}

fn line(path: &Path, index: usize, key: &str) -> Result<Context> {
    let instead =
        || format!("cannot take a context from {}: name one as {key} in {}", path.display(), crate::config::PATH);
    let text = fs::read_to_string(path).with_context(instead)?;
    text.lines().nth(index).unwrap_or_default().trim().parse().with_context(instead)
}

/// Makes sure that the loaded policy knows the context.
///
/// # Errors
/// When it does not, or cannot be asked.
pub fn check(context: &Context) -> Result<()> {
    ensure!(
        knows(context)?,
        "the loaded policy does not know the context {context}: is the svirt_interpose module installed?"
    );
    Ok(())
}

/// Whether the loaded policy knows the context, and every part of it.
///
/// # Errors
/// When it cannot be asked.
pub fn knows(context: &Context) -> Result<bool> {
    let raw = raw(context)?;
    Ok(SecurityContext::from_c_str(&raw, true).check() == Some(true))
}

/// What the loaded policy says of one access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether its rules allow it.
    pub allowed: bool,
    /// Whether the subject's type is permissive, as `semanage permissive` makes one: it is refused nothing.
    pub permissive: bool,
}

/// Asks the loaded policy for one access.
///
/// # Errors
/// When it has no such class or permission, does not know one of the contexts, or cannot be asked.
pub fn decide(subject: &Context, object: &Context, class: &str, permission: &str) -> Result<Decision> {
    const PERMISSIVE: u32 = 1; // SELINUX_AVD_FLAGS_PERMISSIVE
    let ask = || -> Result<Decision> {
        let (subject, object) = (raw(subject)?, raw(object)?);
        let [subject, object] = [&subject, &object].map(|raw| SecurityContext::from_c_str(raw, true));
        let class = SecurityClass::from_name(class).map_err(errno)?;
        let bit = class.access_vector_bit(permission).map_err(errno)?;
        let decision = subject.query_access_decision(&object, class, bit).map_err(errno)?;
        Ok(Decision { allowed: decision.allowed & bit != 0, permissive: decision.flags & PERMISSIVE != 0 })
    };
    ask().with_context(|| format!("cannot ask the policy for {permission} of {class} by {subject} on {object}"))
}

/// The context that a process enters by executing a program of this label, where it asks for none.
///
/// # Errors
/// When the loaded policy does not know one of the two, or cannot be asked.
pub fn entered(subject: &Context, program: &Context) -> Result<Context> {
    let ask = || -> Result<Context> {
        let (subject, program) = (raw(subject)?, raw(program)?);
        let [subject, program] = [&subject, &program].map(|raw| SecurityContext::from_c_str(raw, true));
        let process = SecurityClass::from_name("process").map_err(errno)?;
        Ok(text(&subject.of_labeling_decision(&program, process, "").map_err(errno)?)?.parse()?)
    };
    ask().with_context(|| format!("cannot ask the policy what {subject} enters by executing {program}"))
}

/// The policy's list of types that restorecon leaves alone without `-F`, its `customizable_types`.
///
/// # Errors
/// When libselinux names none.
pub fn customizable_types() -> Result<PathBuf> {
    Ok(selinux::path::customizable_types().map_err(errno)?.into())
}

/// The label of an object held open, by `O_PATH` or otherwise.
///
/// # Errors
/// When it has none, or the filesystem keeps none.
pub fn label(object: impl AsFd) -> Result<Context> {
    let label = SecurityContext::of_path(proc_path(&object), true, true).map_err(errno)?;
    let label = label.context("it has no label: its filesystem keeps none, or restorecon(8) it")?;
    Ok(text(&label)?.parse()?)
}

/// Labels an object held open and reads the label back. Through `/proc/self/fd`, as the descriptor pins the
/// object and an `O_PATH` one takes no fsetxattr(2) (`selinux_fix_fd` in systemd's selinux-util.c).
///
/// # Errors
/// When the kernel refuses, or the label read back is another.
pub fn set_label(object: impl AsFd, context: &Context) -> Result<()> {
    let raw = raw(context)?;
    SecurityContext::from_c_str(&raw, true).set_for_path(proc_path(&object), true, true).map_err(errno)?;
    let now = label(object)?;
    ensure!(now == *context, "it was labelled {context} but carries {now}");
    Ok(())
}

/// Sets the context that the next execve(2) of this thread enters, and reads it back: some kernels take it
/// without SELinux and do nothing.
///
/// # Errors
/// When the kernel refuses, or reads back another.
pub fn set_exec_context(context: &Context) -> Result<()> {
    let what = || format!("cannot set the exec context {context}");
    let raw = raw(context)?;
    SecurityContext::from_c_str(&raw, true).set_for_next_exec().map_err(errno).with_context(what)?;
    let now = SecurityContext::of_next_exec(true).map_err(errno).with_context(what)?;
    let now = now.map(|now| anyhow::Ok(text(&now)?.parse::<Context>()?)).transpose()?;
    ensure!(now.as_ref() == Some(context), "{}: it reads back as {now:?}", what());
    Ok(())
}

/// Takes back what [`set_exec_context`] set.
///
/// # Errors
/// When the kernel refuses.
pub fn clear_exec_context() -> Result<()> {
    SecurityContext::set_default_context_for_next_exec().map_err(errno).context("cannot clear the exec context")
}

fn proc_path(object: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", object.as_fd().as_raw_fd())
}

fn raw(context: &Context) -> Result<CString> {
    Ok(CString::new(context.to_string())?)
}

fn text(context: &SecurityContext) -> Result<String> {
    let raw = context.to_c_string().map_err(errno)?.context("the kernel gave an empty context")?;
    Ok(raw.to_str().context("the kernel gave a context that is no text")?.to_owned())
}

/// The cause without the name of libselinux's function, which says nothing to an administrator.
fn errno(error: selinux::errors::Error) -> anyhow::Error {
    match std::error::Error::source(&error).and_then(|source| source.downcast_ref::<std::io::Error>()) {
        Some(cause) => cause
            .raw_os_error()
            .map_or_else(|| anyhow!("{cause}"), |code| std::io::Error::from_raw_os_error(code).into()),
        None => error.into(),
    }
}
