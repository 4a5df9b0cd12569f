//! The shell completes what `svirtctl --help` lists.

#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

/// What bash offers when these words are on the line.
fn offered(words: &[&str]) -> Vec<String> {
    let script = "source packaging/completions/svirtctl.bash; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))
        _svirtctl; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-c", script, "bash", "svirtctl"]).args(words);
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(String::from).collect()
}

#[test]
fn bash_completes_what_the_help_lists() {
    let output = Command::new(env!("CARGO_BIN_EXE_svirtctl")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands: Vec<Vec<&str>> = help
        .lines()
        .filter_map(|line| line.strip_prefix("  ").filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())))
        .map(|line| line.split("  ").next().unwrap_or_default().split(' ').collect())
        .collect();
    assert!(commands.len() > 1, "{help}");
    let mut listed: Vec<String> = commands.iter().map(|words| words[0].to_owned()).collect();
    listed.sort();
    let (options, words): (Vec<_>, Vec<_>) = offered(&[""]).into_iter().partition(|word| word.starts_with('-'));
    assert_eq!((words, options), (listed, ["--help", "--version"].map(String::from).into()));
    for words in commands {
        let option = words.iter().map(|word| word.trim_matches(['[', ']'])).find(|word| word.starts_with('-'));
        assert_eq!(offered(&[words[0], "-"]), option.map(String::from).into_iter().collect::<Vec<_>>(), "{words:?}");
    }
}

#[test]
fn bash_completes_a_word_that_was_begun() {
    assert_eq!(offered(&["au"]), ["audit"]);
    assert_eq!(offered(&["audit", "--"]), ["--json"]);
    assert!(offered(&["nothing", ""]).is_empty());
}
