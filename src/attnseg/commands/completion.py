"""Prints the script that completes commands, keys and choices in bash, zsh or fish.

eval "$(attnseg completion bash)"        in ~/.bashrc
eval "$(attnseg completion zsh)"         in ~/.zshrc
attnseg completion fish | source         in ~/.config/fish/config.fish
"""

from typing import Literal

from attnseg.commands.command import Command
from attnseg.config.nodes import CommandOptions

QUERY = "complete-line"  # In place of a command: print what the rest of the line can become.

# Results that end a word carry a space at their end; those that do not are continued.
BASH = r"""
_attnseg() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n'
    COMPREPLY=($("${COMP_WORDS[0]/#\~/$HOME}" complete-line "$line" 2>/dev/null))
    (( ${#COMPREPLY[@]} )) || compopt -o filenames +o nospace 2>/dev/null
    # Bash replaces only what follows the last equals sign.
    local word=${line##* }
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
}
complete -o nospace -o default -F _attnseg attnseg
"""
ZSH = r"""
_attnseg() {
    local -a found ended open
    found=("${(@f)$("${(Q)words[1]}" complete-line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    ended=(${${(M)found:#* }% })
    open=(${found:#* })
    if (( $#ended + $#open )); then
        (( $#ended )) && compadd -Q -S ' ' -- $ended
        (( $#open )) && compadd -Q -S '' -- $open
    else
        compset -P '*='
        _files
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _attnseg attnseg
"""
FISH = r"""
function __attnseg_complete
    set -l program (commandline -opc)[1]
    set -l found (eval $program complete-line (string escape -- (commandline -cp)) 2>/dev/null)
    if set -q found[1]
        string trim --right -- $found
    else
        set -l word (commandline -ct)
        set -l key (string match -r '^.*=' -- $word)
        set -l start (string replace -r '^.*=' '' -- $word)
        for path in (complete -C "ls $start")
            echo $key(string split -f1 \t -- $path)
        end
    end
end
complete -c attnseg -f -a '(__attnseg_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


class Completion(CommandOptions):
    """Options of `attnseg completion`.

    Attributes:
        shell: the one whose script is printed.
    """

    shell: Literal["bash", "zsh", "fish"]


def run(options: Completion) -> None:
    """Print a script."""
    print(SCRIPTS[options.shell].strip())


def as_shell(arguments: list[str]) -> list[str]:
    """Let the shell's name stand for `shell=NAME`."""
    return [f"shell={each}" if each in SCRIPTS else each for each in arguments]


COMMAND = Command(
    "completion", __doc__, Completion, run, translate=as_shell, conveniences=tuple(SCRIPTS)
)
