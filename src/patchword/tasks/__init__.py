"""One folder per task, each with what only it needs; `table.py` names their parts."""
