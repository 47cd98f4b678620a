# A key hidden in long texts and asked for, by the length of the text and the place of the key.


rule needle:
    input:
        inputs(STAGES["needle"]),
    output:
        outputs(STAGES["needle"]),
    log:
        LOGS / "needle" / "{run}.log",
    benchmark:
        LOGS / "needle" / "{run}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        gpu=1,
        mem_mb=grows(6000),
        runtime=grows(240),
    params:
        fingerprint=fingerprint(STAGES["needle"]),
    shell:
        "synopsis --log {log:q} needle {resources.config} {wildcards.run:q}"
