# Every result in one table of tidy rows.


rule score:
    input:
        score_inputs(EXPERIMENT),
    output:
        scores=LAYOUT.scores,
        accuracy=LAYOUT.accuracy,
    log:
        LOGS / "score" / "score.log",
    benchmark:
        LOGS / "score" / "score.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=2000,
        runtime=30,
    shell:
        "synopsis --log {log:q} score {resources.config}"
