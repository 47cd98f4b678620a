# Every result in one table of tidy rows.


rule score:
    input:
        [
            path
            for stage in STAGES.values()
            for wildcards in stage.grid(EXPERIMENT)
            for path in stage.outputs(LAYOUT, **wildcards)
        ],
    output:
        scores=LAYOUT.scores,
        csv=LAYOUT.scores_csv,
        accuracy=LAYOUT.accuracy,
    log:
        LOGS / "score" / "score.log",
    benchmark:
        LOGS / "score" / "score.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=grows(2000),
        runtime=grows(30),
    shell:
        "synopsis --log {log:q} score {resources.config}"
