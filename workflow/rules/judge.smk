# Judgements of two runs' outputs. The store of single judgements is not a declared output: a failed job keeps it.


rule judge:
    input:
        inputs(STAGES["judge"]),
    output:
        outputs(STAGES["judge"]),
    log:
        LOGS / "judge" / "{judge}-{a}-vs-{b}-{split}.log",
    benchmark:
        LOGS / "judge" / "{judge}-{a}-vs-{b}-{split}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=grows(1000),
        runtime=grows(240),
    params:
        fingerprint=fingerprint(STAGES["judge"]),
    shell:
        "synopsis --log {log:q} judge {resources.config} {wildcards.judge:q} {wildcards.a:q} {wildcards.b:q} {wildcards.split:q}"
