# bash completion for hyperfs
_hyperfs() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local i images=0 before
    COMPREPLY=()
    # Bash splits -o name=value at the equals sign: no values are offered.
    if [[ $cur == = || $prev == = ]]; then
        return
    fi
    if [[ $prev == -o ]]; then
        before=
        [[ $cur == *,* ]] && before=${cur%,*},
        mapfile -t COMPREPLY < <(compgen -P "$before" -W 'memory= max_threads= read_ahead_kb=
            max_read= digest= fsname= allow_other default_permissions nonempty' -- "${cur##*,}")
        compopt -o nospace
        return
    fi
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '-d -f -s -o -h --help -V --version' -- "$cur")
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        -*) ;;
        *) [[ ${COMP_WORDS[i - 1]} != -o ]] && images=1 ;;
        esac
    done
    compopt -o filenames
    if ((images)); then # the second argument is the mount point
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}
complete -F _hyperfs hyperfs
