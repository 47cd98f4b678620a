# Synopsis: from raw text to tables, figures and a report.
#
#   snakemake --cores 2                                                     the demo (config/demo.yaml)
#   snakemake --cores 2 --configfile config/smollm2.yaml                    another experiment
#   snakemake --cores 2 results/demo/icl/autocompressor-s0/world_eats/seed1.json     one seed
#   snakemake --profile slurm --configfile config/smollm2.yaml              the same on a cluster
#
# What a job does can be typed by hand: each rule is one `synopsis` command. The grid follows from the configuration.
from snakemake.utils import min_version

min_version("9.20")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/perplexity.smk"
include: "workflow/rules/icl.smk"
include: "workflow/rules/needle.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    models,


rule all:
    default_target: True
    input:
        REPORT_FILES,


rule models:
    input:
        [LAYOUT.weights(run) for run in EXPERIMENT.run_names],
