# shellcheck shell=bash
# Completion of svirtctl(8) for bash; installed as /usr/share/bash-completion/completions/svirtctl.

_svirtctl() {
    local words=''
    case $COMP_CWORD:${COMP_WORDS[1]} in
    1:*) words='audit doctor plan reconcile relabel watch --help --version' ;;
    2:audit) words=--json ;;
    2:plan) words=-- ;;
    2:reconcile) words=--all ;;
    2:relabel) words=$(xl list 2>/dev/null | awk 'NR > 2 { print $2 }') ;;
    3:relabel) words=$(xl block-list "${COMP_WORDS[2]}" 2>/dev/null | awk 'NR > 1 { print $1 }') ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -F _svirtctl svirtctl
