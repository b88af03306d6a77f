"""Commands for weight files."""

import argparse
from pathlib import Path

from satmap.cli.commands import Commands
from satmap.cli.options import add_recipe, add_weights, count
from satmap.errors import SatmapError
from satmap.io.files import require_writable
from satmap.io.text import printable

# Number of characters of a long value to print.
_SHOWN = 100


def add_weights_actions(commands: Commands) -> None:
    """Add ``weights`` and its actions."""
    text = (
        "Import, average, shrink or show weight files, read or change their recipe, or download "
        "ImageNet weights of encoders."
    )
    actions = commands.group("weights", text)
    import_ = actions.add("import", _weights_import)
    import_.value("file FILE", Path, "published weight file")
    import_.value("output OUT", Path, "directory of weights or .safetensors file")
    add_recipe(import_, "recipe that the network will predict with")
    fetch = actions.add("fetch", _weights_fetch)
    add_recipe(fetch)
    add_weights(fetch)
    average = actions.add("average", _weights_average)
    average.value("output OUT.safetensors", Path, "weight file to write")
    average.value("files FILE", Path, "weight file to average", nargs="+")
    shrink = actions.add("shrink", _weights_shrink)
    shrink.value("output OUT.safetensors", Path, "weight file to write")
    shrink.value("file FILE", Path, "weight file of a network")
    get_recipe = actions.add("get-recipe", _weights_get_recipe)
    get_recipe.value("output OUT.yaml", Path, "recipe file to write")
    get_recipe.value("file FILE", Path, "weight file of a network")
    set_recipe = actions.add("set-recipe", _weights_set_recipe)
    set_recipe.value("output OUT.safetensors", Path, "weight file to write")
    set_recipe.value("file FILE", Path, "weight file of a network")
    set_recipe.add_argument("--recipe", required=True, help="name of a recipe or .yaml file")
    show = actions.add("show", _weights_show)
    show.value("file FILE", Path, "weight file of satmap")


def _weights_import(options: argparse.Namespace) -> int:
    """Convert a published weight file to satmap's format, without running code in it.

    FILE: a network of SpaceNet 5's third place, or an encoder's ImageNet weights as published by
    pretrainedmodels, torchvision (ResNets, DenseNets) or timm.
    OUT: the directory of weights, or the .safetensors file to write.

    Examples:
      satmap weights import spacenet_dpn_unet_dpn92_3_best_apls weights/
    """
    from satmap.recipes.schema import load_recipe
    from satmap.weights.header import require_weight_file

    recipe = load_recipe(options.recipe)
    require_weight_file(options.file, "Give a published weight file.")
    from satmap.provenance.manifest import write_derived_manifest
    from satmap.weights.published import import_weights

    path = import_weights(options.file, options.output, recipe)
    write_derived_manifest(path, [options.file], options.arguments)
    print(path)
    return 0


def _weights_fetch(options: argparse.Namespace) -> int:
    """Download the ImageNet weights that a recipe starts from.

    They are written to imagenet/ in the directory of weights and checked against the publisher's
    SHA-256. Existing files are verified and kept. Recipes such as small-roads need none: theirs are
    installed with satmap. Other commands use the network only for images that are web addresses.

    Examples:
      satmap weights fetch --recipe sn5-roads --weights weights
    """
    from satmap.recipes.schema import load_recipe
    from satmap.weights.fetch import fetch_encoder
    from satmap.weights.pretrained import encoder_file

    recipe = load_recipe(options.recipe)
    encoders = dict.fromkeys(member.encoder for member in recipe.all_members if member.pretrained)
    for name in encoders:
        outcome = fetch_encoder(options.weights, name)
        print(f"{encoder_file(options.weights, name)}: {outcome}", flush=True)
    if not encoders:
        print(f"recipe {recipe.name} trains from scratch and needs no weights")
    return 0


def _weights_average(options: argparse.Namespace) -> int:
    """Average the weights of several networks of the same kind, such as checkpoints.

    Images count as held out if all networks held them out. To predict with the result, put it into
    its own directory, under the name of a checkpoint such as soup.last.safetensors.

    Examples:
      satmap weights average soup/soup.last.safetensors a.last.safetensors b.last.safetensors
    """
    from satmap.cli.checks import require_networks

    _require_suffix(options.output)
    if len(options.files) < 2:
        raise SatmapError(f"{options.files[0]} is a single file: give two or more to average.")
    require_networks(options.files)
    require_writable(options.output)
    from satmap.provenance.manifest import write_derived_manifest
    from satmap.weights.average import average_weights

    average_weights(options.output, options.files)
    write_derived_manifest(options.output, options.files, options.arguments)
    print(f"{options.output}: the mean of {len(options.files)} networks")
    return 0


def _weights_shrink(options: argparse.Namespace) -> int:
    """Store a network in half precision, in half the space.

    Examples:
      satmap weights shrink roads.safetensors weights/all-efficientnet_lite0-3band.last.safetensors
    """
    from satmap.cli.checks import require_networks

    _require_suffix(options.output)
    require_networks([options.file])
    require_writable(options.output)
    from satmap.provenance.manifest import write_derived_manifest
    from satmap.weights.network_files import shrink_weights

    shrink_weights(options.output, options.file)
    write_derived_manifest(options.output, [options.file], options.arguments)
    sizes = [path.stat().st_size / 1e6 for path in (options.output, options.file)]
    print(f"{options.output}: {sizes[0]:.1f} MB instead of {sizes[1]:.1f} MB")
    return 0


def _weights_get_recipe(options: argparse.Namespace) -> int:
    """Write the recipe that a weight file holds, to change settings of the prediction in it.

    Use the changed file with `map` or `predict --recipe`.

    Examples:
      satmap weights get-recipe mine.yaml weights/all-efficientnet_lite0-3band.last.safetensors
    """
    from satmap.cli.checks import require_networks
    from satmap.submissions.output_checks import require_recipe_output

    require_networks([options.file])
    require_recipe_output(options.output)
    import yaml

    from satmap.io.files import write_text
    from satmap.weights.header import read_weights_metadata
    from satmap.weights.members import WeightFile

    recipe = WeightFile(options.file, read_weights_metadata(options.file)).recipe
    content = recipe.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    write_text(options.output, text)
    print(f"{options.output}: recipe {recipe.name}")
    return 0


def _weights_set_recipe(options: argparse.Namespace) -> int:
    """Store a network with other settings of the prediction, such as those that tune has fitted.

    Only `inference` and the vectoriser's settings may differ from the recipe in the file. Scores in
    the file stay those of the training. A confidence model must be fitted anew.

    Examples:
      satmap weights set-recipe b/a.last.safetensors a/a.last.safetensors --recipe tuned.yaml
    """
    from satmap.cli.checks import require_networks
    from satmap.recipes.schema import load_recipe

    _require_suffix(options.output)
    recipe = load_recipe(options.recipe)
    require_networks([options.file])
    require_writable(options.output)
    from satmap.provenance.manifest import write_derived_manifest
    from satmap.weights.network_files import set_recipe

    set_recipe(options.output, options.file, recipe)
    write_derived_manifest(options.output, [options.file], options.arguments)
    print(f"{options.output}: with the settings of {options.recipe}")
    return 0


def _require_suffix(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise SatmapError(f"{output}: give a name that ends in .safetensors.")


def _weights_show(options: argparse.Namespace) -> int:
    """Print the metadata of a weight file and verify its checksum.

    Examples:
      satmap weights show weights/fold0-dpn92-3band.best_apls.safetensors
    """
    from satmap.weights.header import read_metadata, require_weight_file

    require_weight_file(options.file, "Give the name of a .safetensors file.")
    metadata = read_metadata(options.file)
    from satmap.weights.tensor_file import read_tensors

    tensors = read_tensors(options.file)
    for key, value in metadata.items():
        # One of the values is a whole recipe.
        print(f"{printable(key, _SHOWN)}: {printable(value, _SHOWN)}")
    print(f"{len(tensors)} tensors of {sum(value.numel() for value in tensors.values())} numbers")
    return 0


def add_export(commands: Commands) -> None:
    """Add ``export``."""
    export = commands.add("export", _export)
    export.value("network WEIGHTS.safetensors", Path, "weight file of one network")
    export.value("output OUT.onnx|OUT.pt2", Path, "file to write")
    export.add_argument(
        "--size",
        type=count,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="fix the input to single images of this size in pixels (default: batches of any size)",
    )


def _export(options: argparse.Namespace) -> int:
    """Export a trained network for other programs, as ONNX or as torch.export's .pt2.

    The input is the stretched image, uint8 (batch, bands, height, width). The output is the
    probability maps, float32 (batch, maps, height, width). The metadata of the file holds the names
    of the maps and the recipe.

    Examples:
      satmap export weights/a.last.safetensors network.onnx
      satmap export weights/a.last.safetensors network.pt2 --size 512 512
    """
    from satmap.cli.checks import require_networks, require_single_file
    from satmap.weights.export_file import require_exportable

    require_exportable(options.output)
    require_single_file(options.network)
    require_networks([options.network])
    from satmap.weights.export import export_network
    from satmap.weights.network_files import load_weights

    network, metadata = load_weights(options.network)
    export_network(network, options.output, metadata, options.size and tuple(options.size))
    maps = ", ".join(network.map_names)
    print(f"{options.output}: {network.encoder.in_channels} bands to {maps}")
    return 0
