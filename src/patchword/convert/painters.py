"""Converts weights of the public code of DF-GAN, AttnGAN and DALL-E's codec to `models/painters`.

Sources: tobran/DF-GAN, commit 78f14fd; taoxugit/AttnGAN, commit 0d000e6; openai/DALL-E, commit 5be4b23.

    DF-GAN    GBlocks.i.fuse{1,2}.affine{0,1}.fc_{gamma,beta}    blocks.i.fuse_*.{first,second}.{scale,shift}
              DBlocks.i.conv_r.{0,2}, conv_s, gamma              blocks.i.conv_*, shortcut, weight
              joint_conv.{0,2}                                   joint_in, joint_out
    AttnGAN   ca_net.fc, h_net1.fc.{0,1}, h_net1.upsample_i      augment.project, first.start, first.up
              h_net_i.att, .residual, .upsample, img_net_i       later.*, to_pixels.*
    DALL-E    blocks.group_i.block_j.res_path.conv_k, id_path    groups.i.j.convs.k, shortcut
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from patchword.errors import ModelError

Rules = Sequence[tuple[str, str]]
"""Regular expressions of the public names, and ours with groups such as \\1."""

DF_GAN_GENERATOR: Rules = (
    (r"fc\.(\w+)", r"start.\1"),
    (r"to_rgb\.1\.(\w+)", r"to_pixels.\1"),
    (r"GBlocks\.(\d+)\.c1\.(\w+)", r"blocks.\1.conv_in.\2"),
    (r"GBlocks\.(\d+)\.c2\.(\w+)", r"blocks.\1.conv_out.\2"),
    (r"GBlocks\.(\d+)\.c_sc\.(\w+)", r"blocks.\1.shortcut.\2"),
    *(
        (
            rf"GBlocks\.(\d+)\.fuse{fuse}\.affine{affine}\.fc_{theirs}\.linear{linear}\.(\w+)",
            rf"blocks.\1.{fusion}.{place}.{ours}.{2 * linear - 2}.\2",
        )
        for fuse, fusion in ((1, "fuse_in"), (2, "fuse_out"))
        for affine, place in ((0, "first"), (1, "second"))
        for theirs, ours in (("gamma", "scale"), ("beta", "shift"))
        for linear in (1, 2)
    ),
)
DF_GAN_DISCRIMINATOR: Rules = (
    (r"discriminator\.conv_img\.(\w+)", r"from_pixels.\1"),
    (r"discriminator\.DBlocks\.(\d+)\.conv_r\.0\.(\w+)", r"blocks.\1.conv_in.\2"),
    (r"discriminator\.DBlocks\.(\d+)\.conv_r\.2\.(\w+)", r"blocks.\1.conv_out.\2"),
    (r"discriminator\.DBlocks\.(\d+)\.conv_s\.(\w+)", r"blocks.\1.shortcut.\2"),
    (r"discriminator\.DBlocks\.(\d+)\.gamma", r"blocks.\1.weight"),
    (r"judge\.joint_conv\.0\.(\w+)", r"joint_in.\1"),
    (r"judge\.joint_conv\.2\.(\w+)", r"joint_out.\1"),
)
ATTN_GAN_GENERATOR: Rules = (
    (r"ca_net\.fc\.(\w+)", r"augment.project.\1"),
    (r"h_net1\.fc\.0\.(\w+)", r"first.start.\1"),
    (r"h_net1\.fc\.1\.(\w+)", r"first.start_norm.\1"),
    *((rf"h_net1\.upsample{n}\.([12])\.(\w+)", rf"first.up.{n - 1}.\1.\2") for n in range(1, 5)),
    *((rf"img_net{n}\.img\.0\.(\w+)", rf"to_pixels.{n - 1}.\1") for n in (1, 2, 3)),
    *(
        rule
        for n in (2, 3)
        for rule in (
            (rf"h_net{n}\.att\.conv_context\.(\w+)", rf"later.{n - 2}.attention.project.\1"),
            (rf"h_net{n}\.residual\.(\d+)\.block\.([01])\.(\w+)", rf"later.{n - 2}.residual.\1.gated.\2.\3"),
            (rf"h_net{n}\.residual\.(\d+)\.block\.3\.(\w+)", rf"later.{n - 2}.residual.\1.conv.\2"),
            (rf"h_net{n}\.residual\.(\d+)\.block\.4\.(\w+)", rf"later.{n - 2}.residual.\1.norm.\2"),
            (rf"h_net{n}\.upsample\.([12])\.(\w+)", rf"later.{n - 2}.up.\1.\2"),
        )
    ),
)
_LETTERS = (("w", "weight"), ("b", "bias"))
DISCRETE_VAE: Rules = tuple(
    rule
    for theirs, ours in _LETTERS
    for rule in (
        (rf"encoder\.blocks\.input\.{theirs}", f"encoder.stem.{ours}"),
        (rf"encoder\.blocks\.output\.conv\.{theirs}", f"encoder.logits.{ours}"),
        (rf"decoder\.blocks\.input\.{theirs}", f"decoder.codebook.{ours}"),
        (rf"decoder\.blocks\.output\.conv\.{theirs}", f"decoder.pixels.{ours}"),
        *(
            part
            for group in range(1, 7)
            for block in range(1, 9)
            for part in (
                (
                    rf"(encoder|decoder)\.blocks\.group_{group}\.block_{block}\.id_path\.{theirs}",
                    rf"\1.groups.{group - 1}.{block - 1}.shortcut.{ours}",
                ),
                *(
                    (
                        rf"(encoder|decoder)\.blocks\.group_{group}\.block_{block}\.res_path\.conv_{conv}\.{theirs}",
                        rf"\1.groups.{group - 1}.{block - 1}.convs.{conv - 1}.{ours}",
                    )
                    for conv in range(1, 5)
                ),
            )
        ),
    )
)


def load_reference(module: nn.Module, state: Mapping[str, Tensor], rules: Rules) -> None:
    """Loads public weights into a module of ours, strictly.

    Counters of batch norms are left out. Raises ModelError for a name that no rule knows, and for names that
    are missing or shapes that differ.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        for pattern, ours in rules:
            match = re.fullmatch(pattern, name)
            if match:
                found[match.expand(ours)] = tensor
                break
        else:
            raise ModelError(f"{name} belongs to no part of {type(module).__name__}")
    wanted = {name: one for name, one in module.state_dict().items() if "num_batches_tracked" not in name}
    wrong = sorted(set(found) ^ set(wanted))
    if wrong:
        raise ModelError(
            f"the weights do not fit {type(module).__name__}: {wrong[0]} is missing or left over"
        )
    for name, one in wanted.items():
        if found[name].numel() != one.numel():
            raise ModelError(
                f"{name} has shape {tuple(found[name].shape)}, and {type(module).__name__} needs "
                f"{tuple(one.shape)}"
            )
    kept = {name: one for name, one in module.state_dict().items() if "num_batches_tracked" in name}
    module.load_state_dict({name: one.reshape(wanted[name].shape) for name, one in found.items()} | kept)
