"""Published weights into a directory of weights, so that training and prediction find them."""

from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import require_writable
from satmap.networks.encoders import ENCODERS
from satmap.recipes.schema import Recipe, member_name
from satmap.weights.header import CHECKPOINT_KEY
from satmap.weights.network_files import save_weights
from satmap.weights.pretrained import PretrainedEncoder, encoder_file, save_encoder
from satmap.weights.published import (
    REFERENCE_STRETCH,
    PublishedNetwork,
    read_published,
    source_metadata,
)

_SUFFIX = ".safetensors"


def import_weights(source: Path, out: Path, recipe: Recipe) -> Path:
    """Read a published weight file and write satmap's own; nothing of the file is run.

    Args:
        source: see ``satmap.weights.published.read_published``.
        out: a directory of weights, or the ``.safetensors`` file. In a directory, encoders go to
            ``imagenet/``; networks are named as members of a recipe are, with the fold and the
            checkpoint that stand in the source's name as the author wrote it
            (``..._dpn92_3_best_apls``). A file may have any name. An encoder's must be the one
            where trainings look for it.
        recipe: what a network is to predict with; it need not have a member of that kind.

    Returns:
        The file written. A network counts as the checkpoint that the name of this file says
        (``x.best_apls.safetensors``), else as that of the source's, else as the last.

    Raises:
        SatmapError: the source is no published weight file, the recipe stretches images otherwise
            than the network has seen them, or the file to write has no usable name, exists, or
            cannot be written.
    """
    imported = read_published(source)
    if isinstance(imported, PretrainedEncoder):
        path = _encoder_path(source, out, imported)
        _require_new(path)
        save_encoder(path, imported, source_metadata(source, source.name))
        return path
    _require_stretch(source, recipe)
    path = _network_path(source, out, imported)
    _require_new(path)
    metadata = {
        **imported.metadata,
        **source_metadata(source, source.name),
        "recipe": recipe.model_dump_json(),
        # Of an unknown fold nothing can be said but what the user called the file.
        "member": _member_name(imported) or path.stem.partition(".")[0],
        CHECKPOINT_KEY: imported.checkpoint or "last",
    }
    save_weights(path, imported.network, metadata)
    return path


def _encoder_path(source: Path, out: Path, encoder: PretrainedEncoder) -> Path:
    if out.suffix != _SUFFIX:
        return encoder_file(out, encoder.name)
    if out.stem in ENCODERS and out.stem != encoder.name:
        raise SatmapError(
            f"{out} is where weights of {out.stem} are looked for, but these are of "
            f"{encoder.name}. Name the file after that, or give the directory of weights."
        )
    imagenet = out.parent.name == encoder_file(Path(), encoder.name).parent.name
    place = encoder_file(out.parent.parent if imagenet else out.parent, encoder.name)
    if out != place:
        # Among networks it would be in the way of every prediction.
        raise SatmapError(
            f"{source} holds ImageNet weights of {encoder.name}, which trainings look for in "
            f"{place}. Give that file, or the directory of weights."
        )
    return out


def _require_stretch(source: Path, recipe: Recipe) -> None:
    low, high = REFERENCE_STRETCH
    if (recipe.stretch.low, recipe.stretch.high) != (low, high):
        raise SatmapError(
            f"{source} was trained on images stretched between percentiles {low} and {high}, but "
            f"recipe {recipe.name} stretches between {recipe.stretch.low} and "
            f"{recipe.stretch.high}. Pass another --recipe."
        )


def _member_name(imported: PublishedNetwork) -> str | None:
    """What the network is called as a recipe's member, if its fold is known."""
    encoder = imported.network.encoder
    if imported.fold is None:
        return None
    return member_name(imported.fold, encoder.name, encoder.in_channels)


def _network_path(source: Path, out: Path, imported: PublishedNetwork) -> Path:
    if out.suffix == _SUFFIX:
        return out
    name = _member_name(imported)
    if name is None or imported.checkpoint is None:
        encoder = imported.network.encoder
        example = out / f"{encoder.name}-{encoder.in_channels}band.last{_SUFFIX}"
        raise SatmapError(
            f"{source}: its name says no fold and checkpoint, as ..._3_best_apls does. Give the "
            f"file to write, such as {example}."
        )
    return out / f"{name}.{imported.checkpoint}{_SUFFIX}"


def _require_new(path: Path) -> None:
    """A network of one's own took days to train: nothing is ever replaced."""
    require_writable(path)
    if path.exists():
        raise SatmapError(f"{path} exists already. Remove it, or write to another directory.")
