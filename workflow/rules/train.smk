# One run each. Checkpoints are not declared outputs: a failed job keeps them, and the next one resumes there.
# The command starts one process for each GPU that it sees. `start`: what starts it on several nodes (see profiles/slurm).


rule pretrain:
    input:
        lambda w: plan.training_inputs(EXPERIMENT, w.run),
    output:
        directory(RESULTS / "models" / "{run}"),
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
        mem_mb=4000,
        runtime=1440,
        start="",
    params:
        facts=lambda w: plan.train_facts(EXPERIMENT, w.run),
    shell:
        "{resources.start} synopsis --log {log:q} train {resources.config} {wildcards.run:q}"


rule train:
    input:
        lambda w: plan.training_inputs(EXPERIMENT, w.run),
    output:
        directory(RESULTS / "models" / "{run}"),
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
        mem_mb=8000,
        runtime=1440,
        start="",
    params:
        facts=lambda w: plan.train_facts(EXPERIMENT, w.run),
    shell:
        "{resources.start} synopsis --log {log:q} train {resources.config} {wildcards.run:q}"
