"""NIST sctk as a reference: texts to score, and what sclite and sc_stats say of them."""

from __future__ import annotations

import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

Texts = dict[str, list[str]]

# vocabulary, longest sentence, sentences, chance of an error
_SHAPES = {
    "two words": (2, 6, 200, 0.25),
    "three words": (3, 9, 200, 0.2),
    "ten words": (10, 15, 200, 0.2),
    "many words": (300, 25, 200, 0.08),
    "mostly right": (300, 20, 200, 0.02),
    "mostly wrong": (4, 8, 100, 0.7),
}
CASES = [*_SHAPES, "insertions at the ends", "one system errs", "equal systems", "always one more error"]


def texts(case: str) -> tuple[Texts, Texts, Texts]:
    """Reference and the words of systems A and B: random, or made to be hard."""
    if case in _SHAPES:
        return _random(*_SHAPES[case])
    ref = {f"s{i % 5}-{i:04d}": ["a", "b", "c", "d"][: i % 5] for i in range(60)}
    if case == "insertions at the ends":
        return ref, *({u: w + ["x"] * ((i + k) % 3) for i, (u, w) in enumerate(ref.items())} for k in (0, 1))
    if case == "one system errs":
        return ref, {u: ["x", *w[1:]] for u, w in ref.items()}, dict(ref)
    if case == "equal systems":
        wrong = {u: [*w[:-1], "x"] for u, w in ref.items()}
        return ref, wrong, wrong
    one_more = {u: [*w, "x"] for u, w in ref.items()}
    return ref, one_more, dict(ref)


def _random(n_words: int, longest: int, sentences: int, chance: float) -> tuple[Texts, Texts, Texts]:
    rng = random.Random(n_words + longest)
    vocabulary = [f"w{i}" for i in range(n_words)]
    ref = {
        f"s{i % 7}-{i:04d}": [rng.choice(vocabulary) for _ in range(rng.randint(0, longest))] for i in range(sentences)
    }

    def distort(words: list[str], chance: float) -> list[str]:
        heard = []
        for word in words:
            if rng.random() < 0.5 * chance:
                heard.append(rng.choice(vocabulary))
            if rng.random() > 0.5 * chance:
                heard.append(rng.choice(vocabulary) if rng.random() < chance else word)
        return heard + [rng.choice(vocabulary)] * (rng.random() < chance)

    return ref, *({utt: distort(words, c) for utt, words in ref.items()} for c in (chance, 1.2 * chance))


@dataclass(frozen=True)
class Sctk:
    """sclite and sc_stats, run in a folder."""

    programs: Path
    folder: Path

    def alignments(self, ref: Texts, hyp: Texts) -> dict[str, str]:
        """sclite's steps (C, S, I, D) for each utterance."""
        paths = re.findall(r'<PATH id="\((\S+)\)"[^>]*>\n(.*?)\n?</PATH>', self._sgml(ref, hyp), re.DOTALL)
        return {utt: "".join(step[0] for step in path.split(":") if step.strip()) for utt, path in paths}

    def raw_counts(self, ref: Texts, hyp: Texts) -> tuple[int, ...]:
        """Words, substitutions, deletions, insertions and errors of sclite's summary."""
        report = self._sclite(ref, [hyp], ["rsum", "stdout"])
        (line,) = re.findall(r"\| Sum +\|(.*)\|", report)
        _, words, _, subs, dels, ins, errors, _ = map(int, line.replace("|", " ").split())
        return words, subs, dels, ins, errors

    def mapsswe(self, ref: Texts, hyp_a: Texts, hyp_b: Texts) -> tuple[str, str, str]:
        """The numbers of sc_stats's result line, its p, and the better system, if any."""
        sgml = self._sgml(ref, hyp_a, hyp_b)
        verbose = self._run(["sc_stats", "-p", "-t", "mapsswe", "-v", "-n", "-"], sgml)
        (line,) = re.findall(r"MTCH_PR_RESULTS \(systems: A B\) (.*) \(Stat Diff", verbose)
        self._run(["sc_stats", "-p", "-t", "mapsswe", "-u", "-n", "out"], sgml)
        unified = (self.folder / "out.stats.unified").read_text()
        ((winner, p),) = re.findall(r"\| +MP +\|\| +A +\|[^|]*\| +(\S+) +(\S+)", unified)
        return line, p, winner.replace("~", "")

    def _sgml(self, ref: Texts, *hyps: Texts) -> str:
        return self._sclite(ref, hyps, ["sgml", "stdout"])

    def _sclite(self, ref: Texts, hyps: tuple[Texts, ...] | list[Texts], report: list[str]) -> str:
        words = ["sclite", "-i", "rm", "-r", self._trn("ref", ref), "trn"]
        for name, hyp in zip("AB", hyps):  # noqa: B905 (one or two systems)
            words += ["-h", self._trn(name, hyp), "trn", name]
        return self._run([*words, "-o", *report])

    def _trn(self, name: str, texts: Texts) -> str:
        lines = [f"{' '.join(words)} ({utt})\n" for utt, words in texts.items()]
        (self.folder / name).write_text("".join(lines))
        return name

    def _run(self, words: list[str], given: str = "") -> str:
        command = [str(self.programs / words[0]), *words[1:]]
        done = subprocess.run(
            command, input=given, cwd=self.folder, capture_output=True, encoding="latin-1", check=True
        )
        return done.stdout
