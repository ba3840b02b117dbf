"""`python -m patchword`, which is what `accelerate launch -m patchword` and `torchrun -m patchword` call."""

from patchword.cli import main

main()
