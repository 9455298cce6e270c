"""A run becomes results: tables, figures and findings.

``analysis`` defines the protocol of an analysis and runs one. Each has its own package: ``units`` computes tables,
``findings`` and ``figures`` present the results, by SQL. ``masks`` finds subjects, ``figures`` draws, and
``comparison`` compares two runs.

Imported by others: alignment.figures, alignment.findings, alignment.units, analysis, answers, comparison.compare,
    comparison.figures, comparison.findings, comparison.pairing, concentration.findings, concentration.units, document,
    evidence, figures.colors, figures.contact_sheet, figures.drawings, figures.interactive, figures.overlay,
    figures.still, findings, masks.mask_file, masks.units, ratio, selection, settings, stability.figures,
    stability.units, summary, wording.
Imports: errors, files, settings, tables, demo, manifest, measures, models, runs, cluster.
"""
