//! Our own policy module, as the kernel has it loaded.

use anyhow::Result;

use crate::config::Contexts;
use crate::context::Context;
use crate::selinux;

/// Whether the module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It is, in this program's own version.
    Loaded,
    /// It is, in another version.
    OtherVersion,
    /// It is not.
    Missing,
}

impl Policy {
    /// Asks the kernel. It keeps no list of modules, and the store on the disk may be newer than what is loaded: so the
    /// module has a name for its version, an alias of a type.
    ///
    /// # Errors
    /// When the loaded policy cannot be asked.
    pub fn loaded() -> Result<Self> {
        let has = |type_: &str| selinux::knows(&format!("system_u:object_r:{type_}:s0").parse()?);
        Ok(if !has("svirt_interpose_t")? {
            Self::Missing
        } else if has(&alias())? {
            Self::Loaded
        } else {
            Self::OtherVersion
        })
    }
}

/// `svirt_interpose_0_1_0_t`, of this program's version.
fn alias() -> String {
    format!("svirt_interpose_{}_t", env!("CARGO_PKG_VERSION").replace('.', "_"))
}

/// The context that svirt-interpose enters where it is started as this process was.
///
/// # Errors
/// When the loaded policy does not know svirt-interpose, or cannot be asked.
pub fn interposer() -> Result<Context> {
    let program = "system_u:object_r:svirt_interpose_exec_t:s0".parse()?;
    selinux::entered(&selinux::own_context()?, &program)
}

/// The types of the chain that the loaded policy knows and whose processes are refused nothing.
///
/// # Errors
/// When the loaded policy cannot be asked.
pub fn permissive_types(contexts: &Contexts) -> Result<Vec<String>> {
    let interposer = "system_u:system_r:svirt_interpose_t:s0".parse()?;
    let mut permissive = Vec::new();
    for context in [&contexts.domain, &interposer] as [&Context; 2] {
        if selinux::knows(context)? && selinux::decide(context, context, "process", "signal")?.permissive {
            permissive.push(context.type_().to_owned());
        }
    }
    Ok(permissive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_has_this_programs_version() {
        let module = include_str!("../policy/svirt_interpose.te");
        for line in [
            format!("policy_module(svirt_interpose, {})\n", env!("CARGO_PKG_VERSION")),
            format!("typealias svirt_interpose_t alias {};\n", alias()),
        ] {
            assert!(module.contains(&line), "{line}");
        }
    }
}
