"""The whole examination, as `attnseg doctor` prints it."""

from collections.abc import Mapping

from attnseg.doctor.finding import findings_to_json, format_findings
from attnseg.doctor.libraries import examine_libraries, start_probe
from attnseg.doctor.machine import examine_machine

FOLDERS = {"paths.data": "data", "paths.outputs": "outputs"}


def examine(folders: Mapping[str, str], as_json: bool = False) -> int:
    """Print what was found, and return the exit code: 0 if training can start.

    Args:
        folders: those that commands write to, by the option that sets them.
        as_json: print a JSON list instead of a table.
    """
    probe = start_probe()  # It imports while the machine is examined.
    machine = list(examine_machine(folders))
    findings = [*examine_libraries(probe), *machine]
    problems = [finding for finding in findings if finding.level == "problem"]
    if as_json:
        print(findings_to_json(findings))
    else:
        print(format_findings(findings))
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}, see above"
        print(f"\n{count}" if problems else "\nTraining can start, for example: attnseg demo")
    return max((finding.exit_code for finding in problems), default=0)
