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
        mem_mb=6000,
        runtime=240,
    params:
        fingerprint=fingerprint(STAGES["needle"]),
    shell:
        "synopsis --log {log:q} needle {resources.config} {wildcards.run:q}"
