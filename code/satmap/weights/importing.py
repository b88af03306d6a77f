"""Import published weights into a directory of weights for training and prediction."""

from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.checksums import record_file
from satmap.io.files import require_writable
from satmap.networks.encoders import ENCODERS
from satmap.recipes.schema import LAST, Recipe
from satmap.weights.header import CHECKPOINT_KEY
from satmap.weights.network_files import save_weights
from satmap.weights.pretrained import PretrainedEncoder, encoder_file, save_encoder
from satmap.weights.published import REFERENCE_STRETCH, PublishedNetwork, read_published

_SUFFIX = ".safetensors"


def import_weights(source: Path, out: Path, recipe: Recipe) -> Path:
    """Convert a published weight file to satmap's format; no code in the file is executed.

    Args:
        source: published file; see ``satmap.weights.published.read_published``.
        out: a directory of weights, or the ``.safetensors`` file to write. In a directory, encoders
            go to ``imagenet/``, and networks are named like members of a recipe, with the fold and
            checkpoint of the source's original name (``..._dpn92_3_best_apls``). The file of a
            network may have any name; that of an encoder must be where trainings look for it.
        recipe: recipe for prediction with the network; it need not have a member of that kind.

    Returns:
        The file written. Its name gives the checkpoint that a network counts as
        (``x.best_apls.safetensors``), otherwise the source's name does, otherwise it is the last.

    Raises:
        SatmapError: the source is not a published weight file, the recipe stretches images
            differently from the network's training, or the file to write has no usable name,
            exists, or cannot be written.
    """
    imported = read_published(source)
    if isinstance(imported, PretrainedEncoder):
        path = _encoder_path(source, out, imported.name)
    else:
        low, high = REFERENCE_STRETCH
        if (recipe.stretch.low, recipe.stretch.high) != (low, high):
            raise SatmapError(
                f"{source} was trained on images stretched between percentiles {low} and {high}, "
                f"but recipe {recipe.name} stretches between {recipe.stretch.low} and "
                f"{recipe.stretch.high}. Pass another --recipe."
            )
        path = _network_path(source, out, imported)
    require_writable(path)
    # The existing file may be a network that took days to train.
    if path.exists():
        raise SatmapError(f"{path} already exists. Remove it, or write to another directory.")
    metadata = {"source": source.name, "source_sha256": record_file(source).sha256}
    if isinstance(imported, PretrainedEncoder):
        save_encoder(path, imported, metadata)
        return path
    metadata |= {
        **imported.metadata,
        "recipe": recipe.model_dump_json(),
        # If the fold is unknown, use the file name as the member's name.
        "member": imported.member or path.stem.partition(".")[0],
        CHECKPOINT_KEY: imported.checkpoint or LAST,
    }
    save_weights(path, imported.network, metadata)
    return path


def _encoder_path(source: Path, out: Path, name: str) -> Path:
    if out.suffix != _SUFFIX:
        return encoder_file(out, name)
    if out.stem in ENCODERS and out.stem != name:
        raise SatmapError(
            f"{out} is the place of weights of {out.stem}, but {source} holds weights of {name}. "
            f"Name the file {name}{_SUFFIX}, or give the directory of weights."
        )
    imagenet = out.parent.name == encoder_file(Path(), name).parent.name
    place = encoder_file(out.parent.parent if imagenet else out.parent, name)
    if out != place:
        # Predictions fail if an encoder's file lies among the networks.
        raise SatmapError(
            f"{source} holds ImageNet weights of {name}, which trainings look for in {place}. "
            "Give that file, or the directory of weights."
        )
    return out


def _network_path(source: Path, out: Path, imported: PublishedNetwork) -> Path:
    if out.suffix == _SUFFIX:
        return out
    if imported.member is None:
        encoder = imported.network.encoder
        example = out / f"{encoder.name}-{encoder.in_channels}band.last{_SUFFIX}"
        raise SatmapError(
            f"{source}: the file name gives no fold and checkpoint, as in ..._3_best_apls. Give "
            f"the file to write, such as {example}."
        )
    return out / f"{imported.member}.{imported.checkpoint}{_SUFFIX}"
