"""Uses codebook and prototype memory in a foreign decoder, a small GPT-2 of transformers.

    python examples/prototype_memory_in_a_foreign_decoder.py

Both are independent modules. The codebook turns patches into words, whose embeddings GPT-2 reads as a prefix.
The memory stores the keys and values of GPT-2's attention and clusters them. A gated recall adds the result
of attending to the prototypes to the output of each block.
"""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from patchword.layers.codebook import Codebook, assign
from patchword.layers.prototypes import PrototypeConfig, PrototypeMemory, PrototypeRecall
from patchword.layers.transformer import merge_heads
from patchword.types import KeysAndValues

WIDTH, HEADS, LAYERS, WORDS, PATCHES = 32, 4, 2, 50, 9


class RememberingGpt2(nn.Module):
    """GPT-2 with a prefix of concepts and a prototype memory after each block."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=64)
        self.gpt = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
        self.codebook = Codebook(("dog", "grass", "sky"), torch.randn(3, 16), tower="a tower of width 16")
        self.concept = nn.Linear(16, WIDTH)
        settings = PrototypeConfig(placement="sequential", count=8, cluster_every=4, effect_after=1)
        self.memory = PrototypeMemory(settings, LAYERS, WIDTH, HEADS)
        self.recalls = nn.ModuleList(PrototypeRecall(WIDTH, HEADS) for _ in range(LAYERS))
        for layer, block in enumerate(self.gpt.transformer.h):
            block.register_forward_hook(
                lambda module, inputs, output, layer=layer: self.recall(layer, output)
            )

    def recall(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        """Adds what the prototypes of a layer contribute to the output of its block."""
        columns = self.memory.columns()[layer]
        return output if columns is None else output + self.recalls[layer](output, columns)[0]

    def forward(self, patches: torch.Tensor, tokens: torch.Tensor):
        """Returns GPT-2's output for the concepts of the patches followed by the tokens."""
        prefix = self.concept(assign(patches, self.codebook.embeddings_WE).tokens_BNE)
        inputs = torch.cat((prefix, self.gpt.transformer.wte(tokens)), dim=1)
        return self.gpt(inputs_embeds=inputs, use_cache=True)

    def observe(self, output) -> None:
        """Stores the keys and values of the words, taken from GPT-2's own cache."""
        kept = [
            KeysAndValues(
                merge_heads(layer.keys[:, :, PATCHES:].detach()),
                merge_heads(layer.values[:, :, PATCHES:].detach()),
            )
            for layer in output.past_key_values.layers
        ]
        self.memory.observe(kept, torch.ones(kept[0].keys_BTD.shape[:2], dtype=torch.bool))


def main() -> None:
    """Trains on random data for a few steps and prints loss, live prototypes and gates."""
    torch.manual_seed(0)
    model = RememberingGpt2()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    patches, tokens = torch.randn(16, PATCHES, 16), torch.randint(WORDS, (16, 12))
    for step in range(12):
        output = model(patches, tokens)
        loss = nn.functional.cross_entropy(
            output.logits[:, PATCHES:-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.observe(output)
        gates = sum(recall.gate_C.detach().abs().mean().item() for recall in model.recalls) / LAYERS
        print(
            f"step {step + 1:2d}  loss {loss.item():.3f}  prototypes alive "
            f"{int(model.memory.live_LM.sum()):2d}  mean gate {gates:.4f}"
        )


if __name__ == "__main__":
    main()
