"""Which volume of a study is used for each sequence, and which is next where that one cannot be used after all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.discovery import sequences
from data_prep.discovery.sequences import Rank
from data_prep.sharding import mri_candidates
from data_prep.sharding.mri_candidates import Candidate
from data_prep.sharding.staging import Job, Stager
from data_prep.volumes.volume import RejectedSeries, Volume


@dataclass
class Choice:
    """The volume that is used for a sequence. Only that one is in memory; another is read again when it is needed.

    volume   None once none is left
    rest     those it was chosen over, the next best first
    refused  those that were chosen before and could not be used, with the reason
    """

    sequence: str
    winner: Candidate
    volume: Volume | None
    rest: list[Candidate] = field(default_factory=list)
    refused: list[tuple[Candidate, str]] = field(default_factory=list)

    def use_next(self, job: Job, reason: str) -> bool:
        """Put the next best volume in the place of one that cannot be used; return whether there is one.

        Raises UnreadableError.
        """
        self.volume = None  # before the next one is read: one volume fewer in memory
        self.refused.append((self.winner, reason))
        while self.rest:
            self.winner = self.rest.pop(0)
            try:
                self.volume = mri_candidates.read_again(job, self.winner)
                return True
            except RejectedSeries as changed:
                self.refused.append((self.winner, changed.reason))
        return False

    def entries(self, job: Job) -> dict[str, object]:
        """Return what the manifest says of an accepted volume about the others of its sequence."""
        over = [{"source": job.hash_of(one.series), "grounds": one.guess.grounds} for one in self.rest]
        refused = [
            {"source": job.hash_of(one.series), "grounds": one.guess.grounds, "reason": reason}
            for one, reason in self.refused
        ]
        return {**({"chosen_over": over} if over else {}), **({"instead_of": refused} if refused else {})}

    def reject_others(self, stager: Stager) -> None:
        """Add the manifest rows of all volumes of the sequence but the one that is used."""
        used = {} if self.volume is None else {"replaced_by": stager.job.hash_of(self.winner.series)}
        for one, reason in self.refused:
            grounds = one.guess.grounds
            stager.reject(one.series, RejectedSeries(reason), sequence=self.sequence, grounds=grounds, **used)
        for one in self.rest:
            stager.reject(
                one.series,
                RejectedSeries(self._why(one)),
                sequence=self.sequence,
                grounds=one.guess.grounds,
                lost_to=stager.job.hash_of(self.winner.series),
            )

    def reject(self, stager: Stager, error: RejectedSeries) -> None:
        """Add the manifest rows of all volumes of the sequence, none of which is used."""
        self.reject_others(stager)
        if self.volume is not None:
            stager.reject(self.winner.series, error, sequence=self.sequence, grounds=self.winner.guess.grounds)

    def _why(self, loser: Candidate) -> str:
        """Return why a volume is not used."""
        best, other = self.winner.guess, loser.guess
        another = f"another {self.sequence} of this study"
        if loser.scout and not self.winner.scout and best.rank > Rank.PATTERN:
            return f"{another} is no localizer, this one is"
        if other.rank > best.rank:
            return f"{another} is better known ({best.grounds}, this one by {other.grounds})"
        if len(other.against) > len(best.against):
            return f"{another} has precedence; this one: {', '.join(other.against)}"
        return f"{another} is larger or came first"


def choose(stager: Stager) -> dict[str, Choice]:
    """Return the best known volume of each sequence, of equals the largest; what cannot be used gets its row."""
    choices: dict[str, Choice] = {}
    for candidate, volume in _candidates(stager):
        name = candidate.guess.sequence
        best = choices.get(name)
        if best is None:
            choices[name] = Choice(name, candidate, volume)
        elif candidate.merit < best.winner.merit:
            choices[name] = Choice(name, candidate, volume, [*best.rest, best.winner])
        else:
            best.rest.append(candidate)
        del volume, best  # one volume fewer in memory
    order = {series: number for number, series in enumerate(stager.job.source.series)}
    for choice in choices.values():
        choice.rest.sort(key=lambda one: (one.merit, order[one.series], one.place))
    return dict(sorted(choices.items(), key=lambda item: rank(item[0])))


def rank(sequence: str) -> tuple[int, str]:
    """Return a key that sorts sequences: the known ones first, in the order of the vocabulary."""
    known = sequences.VOCABULARY
    return (known.index(sequence) if sequence in known else len(known), sequence)


def _candidates(stager: Stager) -> Iterator[tuple[Candidate, Volume]]:
    for series in stager.job.source.series:
        try:
            for found in mri_candidates.read(stager.job, series):
                if isinstance(found, RejectedSeries):
                    stager.reject(series, found)
                else:
                    yield found
                del found
        except RejectedSeries as error:
            stager.reject(series, error)
