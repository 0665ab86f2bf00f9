"""What a study found: selection, tables, figures and one HTML page, as pure functions of `Study`.

Import from the modules: `page.write_report`, `tables.summary_text`, `selection.best_metrics`. Matplotlib is
imported by `page` and `figures` alone.
"""
