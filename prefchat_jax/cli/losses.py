"""`prefchat losses`: what --pref_objective and --pref_group_estimator mean."""

from collections.abc import Sequence

from prefchat_jax.cli.console import output, table
from prefchat_jax.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Prints the tables of names."""
    if argv and argv[0] not in ("-h", "--help"):
        raise UserError(f"`prefchat losses` takes no {argv[0]!r}.")
    from prefchat_jax.training.objective import GROUP_EQUATIONS, LINKS

    console = output()
    rows = [
        [name, row.equation, row.paper, "--pref_beta" if row.beta else "--pref_margin"]
        for name, row in LINKS.items()
    ]
    rows.append(["module:function", "your own, of margins [..., K]", "", "--pref_beta"])
    columns = ["--pref_objective", "loss of one margin", "paper", "hyper-parameter"]
    console.print(table("Objectives: d = gold logit - negative logit", columns, rows))
    rows = [[name, equation] for name, equation in GROUP_EQUATIONS.items()]
    columns = ["--pref_group_estimator", "loss over K negatives"]
    console.print(table("Groups: l = loss of one margin", columns, rows))
