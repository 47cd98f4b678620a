# A key hidden in long texts and asked for, by the length of the text and the place of the key.


rule needle:
    input:
        model=lambda w: LAYOUT.model(w.run),
        tokenizer=lambda w: LAYOUT.tokenizer(EXPERIMENT.base_of(w.run)),
    output:
        result=RESULTS / "needle" / "{run}.json",
        examples=RESULTS / "needle" / "{run}.examples.jsonl.gz",
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
        facts=lambda w: plan.needle_facts(EXPERIMENT, w.run),
    shell:
        "synopsis --log {log:q} needle {resources.config} {wildcards.run:q}"
