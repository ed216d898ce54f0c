# bash completion for dump.hyperfs
_dump_hyperfs() {
    local cur=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    # Bash splits --option=value at the equals sign.
    if [[ $cur == = ]]; then
        cur=
    fi
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '--files --tensors --json --plot= -h --help --version' \
            -- "$cur")
        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
        return
    fi
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames
}
complete -F _dump_hyperfs dump.hyperfs
