//! SELinux, and the policy that is loaded.

use std::fs;

use anyhow::{Context as _, Result};

use super::Check;
use crate::config::{Config, Contexts};
use crate::context::Context;
use crate::ctl::INSTALL_POLICY;
use crate::mcs::{Category, Pair};
use crate::policy::{self, Policy};
use crate::selinux::{self, Mode};

const CONFIG: &str = "/etc/selinux/config";

pub(super) fn checks(config: Option<&Config>) -> Vec<Check> {
    match selinux::mode() {
        Ok(Mode::Disabled) => {
            vec![Check::wrong("SELinux is disabled", "boot with security=selinux selinux=1")]
        }
        Ok(mode) => {
            let now = match mode {
                Mode::Enforcing => Check::fine("SELinux is enforcing"),
                _ => Check::wrong("SELinux is permissive", "setenforce 1"),
            };
            let mut checks = vec![now, Check::of(at_boot()), Check::of(module())];
            match config.map(Config::named_contexts) {
                Some(Ok(contexts)) => checks.extend(of_contexts(&contexts)),
                Some(Err(error)) => checks.push(Check::Wrong(format!("{error:#}"), None)),
                None => {}
            }
            checks
        }
        Err(error) => vec![Check::Wrong(format!("{error:#}"), None)],
    }
}

fn at_boot() -> Result<Check> {
    let text = fs::read_to_string(CONFIG).with_context(|| format!("cannot read {CONFIG}"))?;
    let value = text.lines().find_map(|line| line.trim().strip_prefix("SELINUX=")).unwrap_or_default().trim();
    Ok(if value.eq_ignore_ascii_case("enforcing") {
        Check::fine("it will be so after the next boot")
    } else {
        Check::wrong(format!("SELinux will be {value:?} after the next boot"), format!("SELINUX=enforcing in {CONFIG}"))
    })
}

fn module() -> Result<Check> {
    let version = env!("CARGO_PKG_VERSION");
    Ok(match Policy::loaded()? {
        Policy::Loaded => Check::fine(format!("the svirt_interpose policy module {version} is loaded")),
        Policy::OtherVersion => Check::wrong(
            format!("the svirt_interpose policy module that is loaded is not of {version}"),
            INSTALL_POLICY,
        ),
        Policy::Missing => Check::wrong("the svirt_interpose policy module is not loaded", INSTALL_POLICY),
    })
}

fn of_contexts(contexts: &Contexts) -> Vec<Check> {
    let mut checks = Vec::new();
    for context in contexts.all() {
        checks.push(Check::of(selinux::knows(context).map(|known| {
            if known {
                Check::fine(format!("the policy knows {context}"))
            } else {
                let mend = format!("{INSTALL_POLICY}, or another context in {}", crate::config::PATH);
                Check::wrong(format!("the loaded policy does not know the context {context}"), mend)
            }
        })));
    }
    if checks.iter().all(|check| matches!(check, Check::Fine(_))) {
        checks.extend([Check::of(permissive(contexts)), Check::of(chain(contexts)), Check::of(customizable(contexts))]);
    }
    checks
}

fn permissive(contexts: &Contexts) -> Result<Check> {
    let types = policy::permissive_types(contexts)?;
    Ok(if types.is_empty() {
        Check::fine("no type of the chain is permissive")
    } else {
        let mend = types.iter().map(|type_| format!("semanage permissive -d {type_}")).collect::<Vec<_>>().join(" && ");
        Check::wrong(format!("nothing is refused what runs as {}", types.join(", ")), mend)
    })
}

/// From whoever asks to a guest's QEMU: a toolstack that was started as svirtctl was.
fn chain(contexts: &Contexts) -> Result<Check> {
    let (own, interposer) = (selinux::own_context()?, policy::interposer()?);
    let may = |from: &Context, to: &Context| {
        Ok::<_, anyhow::Error>(selinux::decide(from, to, "process", "transition")?.allowed)
    };
    if interposer.type_() != "svirt_interpose_t" || !may(&own, &interposer)? {
        let text = format!("a toolstack that runs as {own} does not start svirt-interpose in a domain of its own");
        return Ok(Check::wrong(text, format!("svirt_interpose_toolstack_domain({}) in a policy module", own.type_())));
    }
    let Some(pair) = Category::new(0).zip(Category::new(1)).and_then(|(low, high)| Pair::new(low, high)) else {
        return Ok(Check::Unknown("there are no categories".into()));
    };
    let guest = contexts.domain.with_pair(pair);
    Ok(if interposer.categories().len() < 2 {
        Check::wrong(
            format!("svirt-interpose runs as {interposer}, and has no pair of categories to give"),
            INSTALL_POLICY,
        )
    } else if !may(&interposer, &guest)? {
        let text = format!("the policy does not let {} start a QEMU as {guest}", interposer.type_());
        Check::wrong(text, format!("{INSTALL_POLICY}, or another domain_context in {}", crate::config::PATH))
    } else {
        Check::fine(format!("a toolstack that runs as {} starts a QEMU as {}", own.type_(), guest.type_()))
    })
}

fn customizable(contexts: &Contexts) -> Result<Check> {
    let path = selinux::customizable_types()?;
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut types = vec![contexts.image.type_(), contexts.shared.type_(), contexts.content.type_()];
    types.dedup();
    let missing: Vec<&str> =
        types.into_iter().filter(|type_| !text.lines().any(|line| line.trim() == *type_)).collect();
    Ok(if missing.is_empty() {
        Check::fine("restorecon leaves guests' disks alone")
    } else {
        let text = format!(
            "restorecon would take guests' disks away from them: {} is not in {}",
            missing.join(", "),
            path.display()
        );
        Check::wrong(text, INSTALL_POLICY)
    })
}
