# Loss of long documents by the length of the context.


rule perplexity:
    input:
        model=lambda w: LAYOUT.model(w.run),
        tokenizer=lambda w: LAYOUT.tokenizer(EXPERIMENT.base_of(w.run)),
        corpus=lambda w: LAYOUT.corpus(
            EXPERIMENT.perplexity.corpus, EXPERIMENT.base_of(w.run)
        ),
    output:
        RESULTS / "perplexity" / "{run}.json",
    log:
        LOGS / "perplexity" / "{run}.log",
    benchmark:
        LOGS / "perplexity" / "{run}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=6000,
        runtime=240,
    params:
        facts=lambda w: plan.perplexity_facts(EXPERIMENT, w.run),
    shell:
        "synopsis --log {log:q} perplexity {resources.config} {wildcards.run:q}"
