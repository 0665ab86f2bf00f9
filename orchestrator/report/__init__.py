"""What a study found: selection, tables, figures and one HTML page, as pure functions of `Study`.

Import from the modules: `page.write_report`, `tables.summary_text`, `selection.best_metrics`. Matplotlib is
imported by the modules that draw (`drawing` and those that use it) and by `page` alone.
"""
