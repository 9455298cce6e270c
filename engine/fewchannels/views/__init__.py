"""Views for people: reports and the explorer.

``report`` writes one file about runs, sweeps and comparisons; ``explore`` serves an application to a browser. Both
query the catalog; findings come from the analyses and the interventions themselves.

Imported by others: explore.live, explore.opened, explore.server, report.build, report.pdf.
Imports: errors, files, settings, measures, runs, analyses, interventions.
"""
