# bash completion for hyperfs-eval
_hyperfs_eval() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    # Bash splits --option=value at the equals sign.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
    --text)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames
        return
        ;;
    --dtype)
        mapfile -t COMPREPLY < <(compgen -W 'float32 bfloat16 float16' -- "$cur")
        return
        ;;
    --windows | --tokens | --context | --seed | --threads)
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '--against= --text= --windows= --tokens= --context= --seed=
            --embedding --dtype= --threads= --low-memory --json -q --quiet -h --help --version' \
            -- "$cur")
        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
        return
    fi
    mapfile -t COMPREPLY < <(compgen -d -- "$cur")
    compopt -o filenames
}
complete -F _hyperfs_eval hyperfs-eval
