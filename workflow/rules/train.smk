# One run each. Checkpoints are not declared outputs: a failed job keeps them, and the next one resumes from them.
# The command starts one process for each GPU that it sees. `start`: what starts it on several nodes (see profiles/slurm).


rule pretrain:
    input:
        inputs(STAGES["train"]),
    output:
        directory(outputs(STAGES["train"])),
    log:
        LOGS / "train" / "{run}.log",
    benchmark:
        LOGS / "train" / "{run}.tsv"
    wildcard_constraints:
        run=one_of(SCRATCH),
    conda:
        "../../envs/synopsis.yaml"
    threads: 2
    resources:
        config=CONFIG,
        gpu=1,
        mem_mb=grows(4000),
        runtime=1440,
        start="",
    params:
        fingerprint=fingerprint(STAGES["train"]),
    shell:
        "{resources.start} synopsis --log {log:q} train {resources.config} {wildcards.run:q}"


rule train:
    input:
        inputs(STAGES["train"]),
    output:
        directory(outputs(STAGES["train"])),
    log:
        LOGS / "train" / "{run}.log",
    benchmark:
        LOGS / "train" / "{run}.tsv"
    wildcard_constraints:
        run=one_of(EXPERIMENT.trained_runs),
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        gpu=1,
        mem_mb=grows(8000),
        runtime=1440,
        start="",
    params:
        fingerprint=fingerprint(STAGES["train"]),
    shell:
        "{resources.start} synopsis --log {log:q} train {resources.config} {wildcards.run:q}"
