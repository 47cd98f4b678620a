# Run in the project's folder with the new environment active: by Snakemake, or by hand.
pip install --constraint envs/constraints.txt --editable .
