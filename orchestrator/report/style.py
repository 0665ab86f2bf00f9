"""How a page looks, and the frame around one. No page needs the network."""

from html import escape

STYLE = """
:root { --ink: #1d2327; --soft: #5b6670; --line: #dfe3e6; --red: #b00020; --green: #1b6e3c; }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 1160px }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem }
h3 { font-size: 1.02rem; margin: 1.3rem 0 .4rem }
p, li { max-width: 52rem }
.soft, figcaption, small { color: var(--soft) }
small { font-size: .82em; white-space: nowrap; font-weight: normal }
.lead { font-size: 1.08rem }
.gate { border-left: 5px solid var(--green); background: #eef6f0; padding: .5rem .9rem;
  margin: .5rem 0; max-width: 54rem }
.gate.failed { border-color: var(--red); background: #fdecee }
.gate.failed b { color: var(--red); font-size: 1.1rem }
.gate ul { margin: .3rem 0 .2rem; padding-left: 1.2rem }
.warn { border-left: 5px solid #d08700; background: #fff7e6; padding: .5rem .9rem;
  margin: .5rem 0; max-width: 54rem }
.warn ul { margin: .2rem 0; padding-left: 1.2rem }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap: .6rem 1.2rem }
figure { margin: .4rem 0 } figure img { width: 100%; max-width: 620px; height: auto; display: block }
figure.full img { width: auto; max-width: 100% }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
td b { font-weight: 600; white-space: nowrap } thead th { color: var(--soft); font-weight: 500;
  white-space: nowrap }
tr.rule th { padding-top: .9rem; font-weight: 600 } tr.start td { background: #fbeeee }
.change { white-space: nowrap }
.setting { min-width: 13rem } .none { color: var(--soft) }
.tag { font-size: .75rem; font-weight: 500; color: var(--soft); border: 1px solid var(--line);
  border-radius: 3px; padding: 0 .35rem }
.beside { font-size: .88rem; border-left: 3px solid #d08700; padding: .1rem 0 .1rem .6rem; margin: .2rem 0 .6rem }
.beside p { margin: .15rem 0 }
b.yes { color: var(--green) } b.no { color: var(--red) } b.none { color: var(--soft) }
table.claims small { white-space: normal } table.claims td:nth-child(2) { min-width: 9rem }
table.claims td:nth-child(3) { min-width: 9rem } table.claims td:last-child { min-width: 20rem }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1rem }
.samples div { font-size: .85rem } .samples img { width: 48%; max-width: 160px; image-rendering: pixelated }
.samples p { margin: .2rem 0; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .15rem 1rem;
  font-size: .92rem; margin: .4rem 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
pre { background: #f5f6f7; padding: .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.4 }
summary { cursor: pointer } details details { margin-left: 1.2rem }
@media (max-width: 560px) { dl { grid-template-columns: 1fr } dd { margin-bottom: .35rem } }
"""


def document(title: str, body: str) -> str:
    """A whole page as text; the body is HTML, the title is not."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{body.replace(' %', '&nbsp;%')}</body></html>\n"
    )
