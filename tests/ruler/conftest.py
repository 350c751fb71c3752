"""Small question files in the formats of SQuAD and HotpotQA."""

import json

import pytest


@pytest.fixture(scope="session")
def questions_folder(tmp_path_factory):
    """A folder with both files: 40 paragraphs of 8 articles with 2 questions each, and 30 questions on 10 documents."""
    folder = tmp_path_factory.mktemp("qa")
    articles = []
    for article in range(8):
        paragraphs = []
        for place in range(5):
            name = f"{article}-{place}"
            asked = [
                {"question": f"What is in {name}? ", "is_impossible": False, "answers": [{"text": f"Gold {name}"}] * 3},
                {"question": f"What is not in {name}?", "is_impossible": True, "answers": []},
            ]
            paragraphs.append({"context": f"Paragraph {name} has gold {name}. " + "It is long. " * 20, "qas": asked})
        articles.append({"paragraphs": paragraphs})
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    rows = [
        {
            "question": f"What is in row {row}?",
            "answer": f"silver {row}",
            "context": [
                [f"Title {row}-{place}", [f"Row {row} has silver {row}. ", "So. " * 30]] for place in range(10)
            ],
        }
        for row in range(30)
    ]
    (folder / "hotpotqa.json").write_text(json.dumps(rows))
    return folder
