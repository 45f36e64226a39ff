"""Write lm_eval.json with lm-evaluation-harness itself: `python tests/golden/make_lm_eval.py` where it is installed."""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

YAML = """task: tiny_quiz
dataset_path: json
dataset_kwargs:
  data_files: {{test: {directory}/quiz.jsonl}}
  cache_dir: {directory}/cache
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
"""
# Letters outside ASCII, spaces on either side, single letters as choices, and one question longer than the model reads.
QUESTIONS: list[dict[str, Any]] = [
    {"question": "The capital of France is", "choices": ["Paris", "Rome", "a town in Spain"], "answer": 0},
    {"question": "Der größte Fluss in Köln:", "choices": ["der Rhein", "die Mosel", "Düsseldorf", "é"], "answer": 1},
    {"question": "Two plus two is ", "choices": ["four", "five"], "answer": 0},
    {"question": "次の中から:", "choices": ["東京", "大阪", "Osaka", "京都市です"], "answer": 3},
    {"question": "A letter.\nA. x\nB. y\nAnswer:", "choices": ["A", "B", "C", "D"], "answer": 3},
    {"question": "long " * 60, "choices": ["y", "yy z"], "answer": 1},
    {"question": "def f(x):\n    return  ", "choices": ["x + 1", "  x", "None"], "answer": 2},
    {"question": "I can't say", "choices": ["n't", "'s", "nothing at all, really"], "answer": 2},
    {"question": "Ответ:", "choices": ["да", "нет", "yes", "maybe so"], "answer": 0},
    {"question": "Of these, one:", "choices": ["brün", "burn", "bürn", "born"], "answer": 2},
    {"question": "And another:", "choices": ["üü", "uuuu", "uuu", "u"], "answer": 1},
    {"question": "The last is", "choices": ["this", "that", "none of the above"], "answer": 2},
]


def write_task(directory: Path) -> Path:
    """The questions as JSON lines, and as a task of the harness."""
    lines = [json.dumps(question, ensure_ascii=False) for question in QUESTIONS]
    (directory / "quiz.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (directory / "tiny_quiz.yaml").write_text(YAML.format(directory=directory), encoding="utf-8")
    return directory / "quiz.jsonl"


def by_harness(model: Any, tokenizer: Any, directory: Path) -> list[dict[str, Any]]:
    """Run the harness on the task in a directory: log-likelihoods and scores of each question."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!")
    runner = HFLM(pretrained=model, tokenizer=wrapped, device="cpu", batch_size=4)
    results = lm_eval.simple_evaluate(
        runner, tasks=["tiny_quiz"], task_manager=TaskManager(include_path=str(directory)), log_samples=True,
        bootstrap_iters=0,
    )  # fmt: skip
    samples = sorted(results["samples"]["tiny_quiz"], key=lambda sample: sample["doc_id"])
    return [
        {
            "log_likelihoods": [float(response[0][0]) for response in sample["resps"]],
            **{name: sample[name] for name in ("acc", "acc_norm", "acc_bytes")},
        }
        for sample in samples
    ]


def main() -> None:
    import conftest

    with tempfile.TemporaryDirectory() as name:
        write_task(Path(name))
        found = by_harness(conftest.build(conftest.FAMILIES["llama"]), conftest.byte_tokenizer(), Path(name))
    golden = {"lm_eval": version("lm_eval"), "questions": QUESTIONS, "results": found}
    (HERE / "lm_eval.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
