# bash completion for mkhyperfs
_mkhyperfs() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    # Bash splits --option=value at the equals sign.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
    --quality)
        mapfile -t COMPREPLY < <(compgen -W 'high good small tiny' -- "$cur")
        return
        ;;
    --allocation)
        mapfile -t COMPREPLY < <(compgen -W 'rules flat' -- "$cur")
        return
        ;;
    --isa)
        mapfile -t COMPREPLY < <(compgen -W 'auto portable avx2' -- "$cur")
        return
        ;;
    --effort)
        mapfile -t COMPREPLY < <(compgen -W 'fast default best' -- "$cur")
        return
        ;;
    --imatrix)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames
        return
        ;;
    -j | --jobs | --rule | --exclude | --mtime | --bits | --ratio | --target-size)
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '--quality= --bits= --ratio= --target-size= --lossless --rule=
            --allocation= --explain --imatrix= --effort= --exclude= --mtime=
            --keep-broken --skip-special -f --force -n --dry-run -j --jobs= --no-verify --verify
            --isa= --json -q --quiet -v --verbose -h --help --version' -- "$cur")
        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
        return
    fi
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames
}
complete -F _mkhyperfs mkhyperfs
