"""Turn a published, fine-tuned wav2vec 2.0 or HuBERT model into an acoustic model of this project.

Reads   a bundle of torchaudio.pipelines by name (its file is taken from torch hub's cache), a file of torchaudio's
        format (with --model, such as --model.arch wav2vec2-base, where its name does not tell its size), or a folder
        of the Hugging Face format: config.json, vocab.json, model.safetensors or pytorch_model.bin.
Writes  OUT/model.mpq, which all commands take that take what `mpq train-am` writes; OUT/units.txt, its letters, for
        the graph: `mpq lang --acoustic-units letters --letters OUT/units.txt`.
A model that was not fine-tuned has no letters: give it to `mpq train-am --checkpoint`. --check tells the two apart, and
writes nothing; of a bundle by its name, whether or not its file is there.

Of --model nothing but how it is trained changes a model whose size is known, such as --model.mask_prob: what `mpq
quantize` trains of it masks as much.

Examples:
  mpq import-am --checkpoint HUBERT_ASR_LARGE --out exp/am
  mpq import-am --checkpoint HUBERT_ASR_LARGE --check
"""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq import-am``."""
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--checkpoint", type=str, required=True, metavar="NAME", help="bundle, file or folder")
    parser.add_argument("--model", type=dict[str, Any], default={}, help="arch, sizes and so on, as of mpq train-am")
    parser.add_argument("--out", type=str, metavar="DIR", help="folder to write")
    parser.add_argument("--check", action="store_true", help="only say whether it is fine-tuned, over units known here")


def run(args: Namespace) -> None:
    """Runs ``mpq import-am``."""
    from pathlib import Path

    from mpq.am import save_am
    from mpq.am.checkpoint import initial_am, is_fine_tuned, read_checkpoint
    from mpq.cli._options import am_config
    from mpq.fst.units import Units
    from mpq.io import BadInput, check_writable

    if (args.out is None) != args.check:
        raise BadInput("give the folder to write by --out, or --check to write nothing, one of the two")
    if args.check:
        print(f"import-am: {'fine-tuned' if is_fine_tuned(args.checkpoint) else 'not fine-tuned'}: {args.checkpoint}")
        return
    path = Path(args.out, "model.mpq")
    check_writable(path)
    checkpoint = read_checkpoint(args.checkpoint)
    if checkpoint.path.suffix == ".mpq":
        raise BadInput(
            f"{checkpoint.path}: is an acoustic model of this project already; use it as it is, or train it further by "
            f"mpq train-am --checkpoint {args.checkpoint}"
        )
    config = am_config(args.model, checkpoint)
    model = initial_am(config, checkpoint.labels or ["any"], checkpoint)  # says so if it is of another architecture
    if not checkpoint.labels:
        raise BadInput(
            f"{checkpoint.path}: no classifier of known units; train one by mpq train-am --checkpoint {args.checkpoint}"
        )
    save_am(path, model, checkpoint.labels)
    Units(checkpoint.labels).write(args.out)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"import-am: {millions:.1f} million parameters, {len(checkpoint.labels)} units: {path}")
