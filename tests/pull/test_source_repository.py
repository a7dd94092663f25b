"""What a source answers about its archives, whatever it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from borg_pull.pull.config import Config
from borg_pull.pull.places import Places
from borg_pull.pull.pull import Task
from borg_pull.pull.repository import Answer, RepositoryError
from borg_pull.pull.source_repository import SourceRepository
from borg_pull.pull.stop import Stop

ID = "5" * 64
SOUND = f'{{"id": "{ID}", "archive": "job-1", "time": "2026-11-21T01:02:03.000000"}}'


class Answering(SourceRepository):
    """One whose source answers ``answer`` to all."""

    answer = b""

    def run(
        self, words: Sequence[str], *, on_line: Callable[[bytes], None] | None = None
    ) -> Answer:
        del words, on_line
        return Answer(0, self.answer, "")


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Answering]:
    config = Config.model_validate(
        {
            "source": {"web": {"host": "web", "identity": "/key"}},
            "repository": {"web": {"path": "/r", "key_on": "source"}},
            "job": {"web": {"source": "web", "repository": "web", "paths": ["/"]}},
        }
    )
    job, source, repository = config.job["web"], config.source["web"], config.repository["web"]
    stop = Stop()
    with open(os.devnull, "r+b") as log:
        yield Answering(
            Task("web", job, "web", source, "web", repository),
            Places(tmp_path, tmp_path),
            greeting=None,
            passphrase=lambda: None,
            log=log,
            stop=stop,
        )
    stop.close()


def test_a_list(repository: Answering) -> None:
    """Control. What does not match the glob was not asked for."""
    other = SOUND.replace("job-1", "other-1")
    repository.answer = f'{{"archives": [{SOUND}, {other}]}}'.encode()
    (found,) = repository.archives("job-*")
    assert (found.id, found.name) == (ID, "job-1")
    assert len(repository.archives()) == 2


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "nonsense",
        "[]",
        "3",
        '{"archives": 1}',
        '{"archives": [1]}',
        '{"archives": [[]]}',
        f'{{"archives": [{SOUND.replace(ID, "--debug-profile=/x")}]}}',
        f'{{"archives": [{SOUND.replace(ID, ID[1:])}]}}',
        '{"archives": [{"id": 1, "archive": "job-", "time": "2026-01-01"}]}',
        f'{{"archives": [{SOUND.replace("job-1", "")}]}}',
        f'{{"archives": [{SOUND.replace("job-1", "j" * 5000)}]}}',
        f'{{"archives": [{SOUND.replace("2026-11-21T01:02:03.000000", "yesterday")}]}}',
        "[" * 100_000,
    ],
    ids=lambda answer: answer[:30],
)
def test_a_senseless_list(repository: Answering, answer: str) -> None:
    repository.answer = answer.encode()
    with pytest.raises(RepositoryError, match="is no answer of borg's"):
        repository.archives("*")


@pytest.mark.parametrize("answer", ["nonsense", "{}", '{"archives": []}', '{"archives": [3]}'])
def test_a_senseless_info(repository: Answering, answer: str) -> None:
    repository.answer = answer.encode()
    with pytest.raises(RepositoryError, match="is no answer of borg's"):
        repository.info("job-1")
