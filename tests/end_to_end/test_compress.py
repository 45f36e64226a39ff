"""The main job, in process: every budget, engine and kind of input; what is claimed agrees with what is on disk."""

from __future__ import annotations

from pennyweight.flow.compress import Outcome


def test_main(outcome: Outcome) -> None:
    print(outcome.summary)
    import json
    print((outcome.out/'pennyweight/ladder.json').read_text())
    print(sorted(str(p.relative_to(outcome.out)) for p in outcome.out.rglob('*')))
    assert outcome.holds
