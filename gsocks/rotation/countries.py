"""Country codes (ISO 3166-1) and the English names that lists of exits have for countries."""

from __future__ import annotations

import functools
import re
import unicodedata

_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}")
_FLAG_A = 0x1F1E6

# Code and names, in the form in which `_key` compares them.
_TABLE = """
ad andorra|ae united arab emirates,uae|af afghanistan|ag antigua and barbuda|ai anguilla
al albania|am armenia|ao angola|aq antarctica|ar argentina|as american samoa|at austria
au australia|aw aruba|ax aland islands|az azerbaijan|ba bosnia and herzegovina,bosnia
bb barbados|bd bangladesh|be belgium|bf burkina faso|bg bulgaria|bh bahrain|bi burundi|bj benin
bl saint barthelemy|bm bermuda|bn brunei,brunei darussalam
bo bolivia,plurinational state of bolivia,bolivia plurinational state of
bq bonaire sint eustatius and saba,caribbean netherlands|br brazil|bs bahamas,the bahamas|bt bhutan
bv bouvet island|bw botswana|by belarus|bz belize|ca canada|cc cocos islands
cd democratic republic of the congo,dr congo,congo the democratic republic of the
cf central african republic|cg congo,republic of the congo|ch switzerland
ci cote d ivoire,ivory coast|ck cook islands|cl chile|cm cameroon|cn china|co colombia
cr costa rica|cu cuba|cv cape verde,cabo verde|cw curacao|cx christmas island|cy cyprus
cz czech republic,czechia|de germany|dj djibouti|dk denmark|dm dominica|do dominican republic
dz algeria|ec ecuador|ee estonia|eg egypt|eh western sahara|er eritrea|es spain|et ethiopia
fi finland|fj fiji|fk falkland islands|fm micronesia,federated states of micronesia
fo faroe islands|fr france|ga gabon|gb united kingdom,great britain,uk,england|gd grenada
ge georgia|gf french guiana|gg guernsey|gh ghana|gi gibraltar|gl greenland|gm gambia,the gambia
gn guinea|gp guadeloupe|gq equatorial guinea|gr greece|gs south georgia|gt guatemala|gu guam
gw guinea bissau|gy guyana|hk hong kong,hongkong|hn honduras|hr croatia|ht haiti|hu hungary
id indonesia|ie ireland|il israel|im isle of man|in india|io british indian ocean territory
iq iraq|ir iran,islamic republic of iran,iran islamic republic of|is iceland|it italy|je jersey
jm jamaica|jo jordan|jp japan|ke kenya|kg kyrgyzstan|kh cambodia|ki kiribati|km comoros
kn saint kitts and nevis|kp north korea|kr south korea,republic of korea,korea republic of,korea
kw kuwait|ky cayman islands|kz kazakhstan|la laos,lao people s democratic republic|lb lebanon
lc saint lucia|li liechtenstein|lk sri lanka|lr liberia|ls lesotho|lt lithuania|lu luxembourg
lv latvia|ly libya|ma morocco|mc monaco|md moldova,republic of moldova,moldova republic of
me montenegro|mf saint martin|mg madagascar|mh marshall islands|mk north macedonia,macedonia
ml mali|mm myanmar,burma|mn mongolia|mo macao,macau|mp northern mariana islands|mq martinique
mr mauritania|ms montserrat|mt malta|mu mauritius|mv maldives|mw malawi|mx mexico|my malaysia
mz mozambique|na namibia|nc new caledonia|ne niger|nf norfolk island|ng nigeria|ni nicaragua
nl netherlands,the netherlands,holland|no norway|np nepal|nr nauru|nu niue|nz new zealand|om oman
pa panama|pe peru|pf french polynesia|pg papua new guinea|ph philippines|pk pakistan|pl poland
pm saint pierre and miquelon|pn pitcairn|pr puerto rico
ps palestine,palestinian territory,state of palestine|pt portugal|pw palau|py paraguay|qa qatar
re reunion|ro romania|rs serbia|ru russia,russian federation|rw rwanda|sa saudi arabia
sb solomon islands|sc seychelles|sd sudan|se sweden|sg singapore|sh saint helena|si slovenia
sj svalbard and jan mayen|sk slovakia|sl sierra leone|sm san marino|sn senegal|so somalia
sr suriname|ss south sudan|st sao tome and principe|sv el salvador|sx sint maarten
sy syria,syrian arab republic|sz eswatini,swaziland|tc turks and caicos islands|td chad
tf french southern territories|tg togo|th thailand|tj tajikistan|tk tokelau
tl timor leste,east timor|tm turkmenistan|tn tunisia|to tonga|tr turkey,turkiye
tt trinidad and tobago|tv tuvalu|tw taiwan,taiwan province of china
tz tanzania,united republic of tanzania,tanzania united republic of|ua ukraine|ug uganda
um us minor outlying islands
us united states,united states of america,usa|uy uruguay|uz uzbekistan|va vatican,holy see
vc saint vincent and the grenadines|ve venezuela,bolivarian republic of venezuela,venezuela bolivarian republic of
vg british virgin islands|vi us virgin islands|vn vietnam,viet nam|vu vanuatu|wf wallis and futuna
ws samoa|xk kosovo|ye yemen|yt mayotte|za south africa|zm zambia|zw zimbabwe
"""  # noqa: E501 - one name is longer than a line

_CODES: dict[str, str] = {}
for _entry in _TABLE.replace("\n", "|").strip("|").split("|"):
    _code, _, _names = _entry.partition(" ")
    _CODES.update(dict.fromkeys([_code, *_names.split(",")], _code))


@functools.lru_cache(maxsize=1024)
def country_of(text: str) -> str | None:
    """The code, in lower case, of a country that ``text`` is the code, the name or the flag of."""
    if len(text) > 60:
        return None
    if not text.isascii() and (found := flag_in(text)) is not None:
        return found
    if any(map(str.isdigit, text)):  # "120ms" is not Montserrat
        return None
    return _CODES.get(_key(text))


def flag_in(text: str) -> str | None:
    """The code of the first flag in ``text``: two regional indicators (UTS #51, annex B)."""
    found = _FLAG.search(text)
    if found is None:
        return None
    code = "".join(chr(ord(letter) - _FLAG_A + ord("a")) for letter in found[0])
    return _CODES.get(code)


def without_flags(text: str) -> str:
    """``text`` with a space in place of each flag."""
    return _FLAG.sub(" ", text)


def _key(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^a-z]+", " ", plain.lower()).split())
