# In-context learning: one run, data set and seed in all settings.


rule icl:
    input:
        inputs(STAGES["icl"]),
    output:
        outputs(STAGES["icl"]),
    log:
        LOGS / "icl" / "{run}-{dataset}-seed{seed}.log",
    benchmark:
        LOGS / "icl" / "{run}-{dataset}-seed{seed}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        gpu=1,
        mem_mb=grows(6000),
        runtime=grows(240),
    params:
        fingerprint=fingerprint(STAGES["icl"]),
    shell:
        "synopsis --log {log:q} icl {resources.config} {wildcards.run:q} {wildcards.dataset:q} --seed {wildcards.seed:q}"
