# Loss of long documents by the length of the context.


rule perplexity:
    input:
        inputs(STAGES["perplexity"]),
    output:
        outputs(STAGES["perplexity"]),
    log:
        LOGS / "perplexity" / "{run}.log",
    benchmark:
        LOGS / "perplexity" / "{run}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        gpu=1,
        mem_mb=grows(6000),
        runtime=grows(240),
    params:
        fingerprint=fingerprint(STAGES["perplexity"]),
    shell:
        "synopsis --log {log:q} perplexity {resources.config} {wildcards.run:q}"
