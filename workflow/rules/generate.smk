# Outputs for a validation split, and their ROUGE.


rule generate:
    input:
        inputs(STAGES["generate"]),
    output:
        outputs(STAGES["generate"]),
    log:
        LOGS / "generate" / "{run}-{split}.log",
    benchmark:
        LOGS / "generate" / "{run}-{split}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        gpu=1,
        mem_mb=grows(6000),
        runtime=grows(240),
    params:
        fingerprint=fingerprint(STAGES["generate"]),
    shell:
        "synopsis --log {log:q} generate {resources.config} {wildcards.run:q} {wildcards.split:q}"
