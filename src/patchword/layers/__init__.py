"""Parts of models that several papers share."""
